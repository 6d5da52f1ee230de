"""Draw a plan: rows as bars, divided into their clips, as one SVG that needs nothing else. Pure: lengths in, text out."""

from collections.abc import Sequence
from itertools import accumulate

ROWS_SHOWN = 48
WIDTH, LEFT, BAR, GAP, TOP = 960, 60, 10, 3, 40  # pixels
GOLDEN_DEG = 137.508  # neighbours in a row get hues far apart


def plan_picture(rows: Sequence[Sequence[int]], capacity: int) -> str:
    """Draw rows, given as the tokens of their clips, against what they may hold; of many rows some, evenly.

    Returns:
        An SVG document. Images are as wide as their few tokens: a hair. What stays free is red.
    """
    step = max(1, -(-len(rows) // ROWS_SHOWN))
    shown = list(range(0, len(rows), step))
    bars = [_bar(rows[number], capacity, number, TOP + place * (BAR + GAP)) for place, number in enumerate(shown)]
    clips, tokens = sum(map(len, rows)), sum(map(sum, rows))
    fill = f"{tokens / (len(rows) * capacity):.2%}" if rows else "nothing"
    every = f"; one row of {step} is shown" if step > 1 else ""
    title = f"{len(rows):,} rows of {capacity:,} tokens, {clips:,} clips, {fill} full{every}"
    height = TOP + len(shown) * (BAR + GAP) + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + GAP}" height="{height}" font-family="sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{GAP}" y="{TOP // 2}" font-size="14">{title}</text>',
            *bars,
            "</svg>\n",
        ]
    )


def _bar(clips: Sequence[int], capacity: int, number: int, top: int) -> str:
    ends = [end * WIDTH / capacity for end in accumulate(clips, initial=0)]
    parts = [
        f"{_box(begin, end, top, f'hsl({place * GOLDEN_DEG % 360:.0f} 45% 60%)')}<title>{tokens:,} tokens</title></rect>"
        for place, (tokens, begin, end) in enumerate(zip(clips, ends, ends[1:], strict=False))
    ]
    label = f'<text x="{LEFT - GAP}" y="{top + BAR - 1}" font-size="9" text-anchor="end">{number:,}</text>'
    return "\n".join([label, *parts, f"{_box(ends[-1], WIDTH, top, 'red')}</rect>"])


def _box(begin: float, end: float, top: int, fill: str) -> str:
    return f'<rect x="{LEFT + begin:.2f}" y="{top}" width="{end - begin:.2f}" height="{BAR}" fill="{fill}">'
