"""Which encoded clips a pack config takes, and as which segments: pure decisions over records. No device, no files."""

from dataclasses import replace
from math import prod

from packing.geometry import token_grid
from packing.pieces import Piece, divide
from packing.tokens import kept_count, most_tokens
from pipeline.config import PackConfig
from pipeline.records import EncodeResult
from pipeline.select import Rejection


def unpackable(encoded: EncodeResult, config: PackConfig) -> Rejection | None:
    """Return the bound of the pack config that an encoded clip breaks, or None."""
    frames, (height, width), grid = encoded.latent_shape[1], encoded.size, grid_of(encoded, config)
    least = kept_count(prod(grid[1:]) if config.too_long == "divide" else prod(grid), config.drop)
    bounds = [
        ("pack.length", least, least > config.length, config.length),
        ("pack.kind", frames, config.kind == "images" and frames > 1, 1),
        ("pack.kind", frames, config.kind == "videos" and frames == 1, 2),
        ("pack.min_tokens", prod(grid), prod(grid) < config.min_tokens, config.min_tokens),
        ("pack.min_pixels", height * width, height * width < config.min_pixels, config.min_pixels),
        ("pack.max_pixels", height * width, height * width > (config.max_pixels or height * width), config.max_pixels),
    ]
    return next((Rejection(rule=rule, value=value, threshold=bound) for rule, value, broken, bound in bounds if broken), None)


def segments_of(clip_id: str, encoded: EncodeResult, config: PackConfig) -> list[Piece]:
    """Return the segments that a clip is packed as: itself, or its pieces when it is longer than a row.

    Their `tokens` are those that are kept; a clip is divided first, and then tokens of each piece are dropped.
    """
    pieces = divide(clip_id, grid_of(encoded, config), most_tokens(config.length, config.drop))
    return [replace(piece, tokens=kept_count(piece.tokens, config.drop)) for piece in pieces]


def grid_of(encoded: EncodeResult, config: PackConfig) -> tuple[int, int, int]:
    """Return the token grid (t, h, w) of an encoded clip."""
    _, t, h, w = encoded.latent_shape
    return token_grid((t, h, w), config.patch)
