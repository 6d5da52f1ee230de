"""What makes a clip unfit, done to the pictures of a good scene: each defect is one function with the fate it deserves.

A function takes pictures and a generator and returns pictures of the same size; like scenes, it looks the same at any
resolution. Legend: F Y X frames, rows, columns of pixels; pictures are uint8 RGB.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from demo.scenes import Picture, Pictures

Defect = Callable[[Pictures, np.random.Generator], Pictures]

WORDS = (
    *("SALE", "NEWS", "LIVE", "SUBSCRIBE", "EPISODE", "PART TWO", "BREAKING", "TODAY ONLY", "THE END", "WATCH NOW", "HOW TO"),
    *("VLOG", "OFFICIAL", "CHAPTER"),
)
FLASH_PERIOD_FRAMES = 6  # of a strobe light: lit for the first half


def too_dark(pictures: Pictures, random: np.random.Generator) -> Pictures:
    """Take nearly all light away."""
    return (pictures * random.uniform(0.03, 0.07)).astype(np.uint8)


def washed_out(pictures: Pictures, random: np.random.Generator) -> Pictures:
    """Leave little of contrast and colour."""
    kept = random.uniform(0.05, 0.09)
    return (pictures * kept + 215 * (1 - kept)).astype(np.uint8)


def blurred(pictures: Pictures, random: np.random.Generator) -> Pictures:
    """Put everything far out of focus."""
    sigma = random.uniform(0.06, 0.09) * min(pictures.shape[1:3])
    return np.stack([cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) for picture in pictures])


def flashing(pictures: Pictures, random: np.random.Generator) -> Pictures:
    """Light the scene like a strobe."""
    lit = (np.arange(len(pictures)) + random.integers(FLASH_PERIOD_FRAMES)) % FLASH_PERIOD_FRAMES < FLASH_PERIOD_FRAMES // 2
    strength = random.uniform(0.55, 0.75)
    flashed = pictures[lit] * (1 - strength) + 255 * strength
    result = pictures.copy()
    result[lit] = flashed.astype(np.uint8)
    return result


def text_overlay(pictures: Pictures, random: np.random.Generator) -> Pictures:
    """Write large words across the picture: two or three lines, or a banner."""
    height, width = pictures.shape[1:3]
    banner = random.random() < 0.4
    lines = [str(word) for word in random.choice(WORDS, size=1 if banner else int(random.integers(2, 4)), replace=False)]
    size = min(height, width) * (0.2 if banner else 0.17)
    middle = height * (0.82 if banner else 0.5)
    layer, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    if banner:
        cv2.rectangle(mask, (0, round(middle - 0.8 * size)), (width, round(middle + 0.8 * size)), 255, -1)
        layer[:] = (20, 20, 20)
    for number, line in enumerate(lines):
        baseline = middle + size * (1.35 * (number - (len(lines) - 1) / 2) + 0.4)
        _write(layer, mask, line, baseline, size, width)
    return _laid_over(pictures, layer, mask, 1.0)


def watermark(pictures: Pictures, random: np.random.Generator) -> Pictures:
    """Put a small half-transparent sign into a corner."""
    height, width = pictures.shape[1:3]
    unit = min(height, width)
    tall, wide = round(0.13 * unit), round(0.3 * unit)
    top = round(0.04 * unit) if random.random() < 0.5 else height - tall - round(0.04 * unit)
    left = round(0.04 * unit) if random.random() < 0.5 else width - wide - round(0.04 * unit)
    layer, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    cv2.rectangle(mask, (left, top), (left + wide, top + tall), 255, -1)
    layer[:] = (235, 235, 235)
    text = str(random.choice(["TUBE", "CLIP", "STOK", "FILM"]))
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_DUPLEX, max(2, round(0.6 * tall)))
    (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, 1)
    at = left + (wide - text_width) // 2, top + round(0.8 * tall)
    cv2.putText(layer, text, at, cv2.FONT_HERSHEY_DUPLEX, scale, (25, 25, 25), max(1, round(unit / 90)), cv2.LINE_AA)
    return _laid_over(pictures, layer, mask, float(random.uniform(0.6, 0.8)))


DEFECTS: Mapping[str, Defect] = {
    "too_dark": too_dark,
    "washed_out": washed_out,
    "blurred": blurred,
    "flashing": flashing,
    "text_overlay": text_overlay,
    "watermark": watermark,
}


def _write(layer: Picture, mask: Picture, line: str, baseline: float, size: float, width: int) -> None:
    """Write one centred line, white with a dark rim, into a layer and its mask; `size` is the height of a capital."""
    face = cv2.FONT_HERSHEY_DUPLEX
    scale = cv2.getFontScaleFromHeight(face, max(3, round(size)))
    (text_width, _), _ = cv2.getTextSize(line, face, scale, 1)
    scale *= min(1.0, 0.9 * width / text_width)
    text_width = cv2.getTextSize(line, face, scale, 1)[0][0]
    at = (width - text_width) // 2, round(baseline)
    stroke = max(1, round(size / 8))
    for canvas, colour, thickness in (
        (mask, 255, 3 * stroke),
        (layer, (15, 15, 15), 3 * stroke),
        (layer, (250, 250, 250), stroke),
    ):
        cv2.putText(canvas, line, at, face, scale, colour, thickness, cv2.LINE_AA)


def _laid_over(pictures: Pictures, layer: Picture, mask: Picture, opacity: float) -> Pictures:
    share = (mask[..., None] / 255 * opacity).astype(np.float32)
    return (pictures * (1 - share) + layer * share).round().astype(np.uint8)
