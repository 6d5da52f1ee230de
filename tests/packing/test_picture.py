"""The picture of a plan is one well-formed SVG whose boxes are as wide as what they stand for."""

import xml.etree.ElementTree as ElementTree

import pytest

from packing import plan_picture
from packing.picture import ROWS_SHOWN, WIDTH

RECT, TEXT = ("{http://www.w3.org/2000/svg}" + name for name in ("rect", "text"))


def boxes(svg: str) -> list[tuple[float, str]]:
    """Width and fill of every box but the background."""
    found = ElementTree.fromstring(svg).iter(RECT)
    return [(float(box.attrib["width"]), box.attrib["fill"]) for box in found if box.attrib["fill"] != "white"]


def test_clips_and_free_space_are_as_wide_as_their_tokens() -> None:
    widths = [width for width, _ in boxes(plan_picture([[30, 50], [100]], 100))]
    assert widths == pytest.approx([0.3 * WIDTH, 0.5 * WIDTH, 0.2 * WIDTH, WIDTH, 0])


def test_neighbours_have_other_colours_and_only_free_space_is_red() -> None:
    fills = [fill for _, fill in boxes(plan_picture([[20] * 4], 100))]
    assert len(set(fills)) == 5
    assert fills.index("red") == 4


def test_of_many_rows_some_are_shown_and_the_title_says_so() -> None:
    svg = plan_picture([[100]] * 1000, 100)
    assert len(boxes(svg)) <= 2 * ROWS_SHOWN
    title = next(ElementTree.fromstring(svg).iter(TEXT)).text
    assert title == "1,000 rows of 100 tokens, 1,000 clips, 100.00% full; one row of 21 is shown"


def test_no_rows_have_a_picture() -> None:
    assert boxes(plan_picture([], 100)) == []
