"""Divide a clip that is longer than a row into pieces, each a segment of its own; nothing of it is lost.

Cuts lie between tokens in time, so at multiples of the patch's latent frames, as evenly as can be. Each piece has the whole
clip's captions, an id of its own, and a record of where it comes from.

A causal codec encodes the first frame of a clip alone and each later latent frame from `stride` frames and what came before.
So the first latent frame of a later piece is not like that of a clip: it stands for several frames and leans on frames that are
in the piece before. A model trained on such pieces sees both kinds at position 0. Decoded alone, a later piece begins with one
frame in place of `stride`, and that frame is degraded. Where that matters, reject long clips or pack them into longer rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from packing.geometry import Patch, token_grid
from packing.shards import PackedClip


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Piece `number` of `count` of a clip: its token frames `[first, last)`, and how many `tokens` it has."""

    clip_id: str
    number: int
    count: int
    first: int
    last: int
    tokens: int

    @property
    def id(self) -> str:
        """The id of the segment: that of the clip when it is whole."""
        return self.clip_id if self.count == 1 else f"{self.clip_id}#{self.number + 1}of{self.count}"


def clip_id_of(segment_id: str) -> str:
    """Return the id of the clip that a segment is, or is a piece of."""
    return segment_id.partition("#")[0]


def divide(clip_id: str, grid: Sequence[int], capacity: int) -> list[Piece]:
    """Divide a clip with token grid (t, h, w) into the fewest pieces of at most `capacity` tokens, as even as can be.

    Raises:
        ValueError: a single token frame has more than `capacity` tokens.
    """
    t, h, w = grid
    if h * w > capacity:
        raise ValueError(f"a frame of clip {clip_id} has {h * w} tokens, a row {capacity}: nothing is left to divide")
    count = -(-t // (capacity // (h * w)))
    ends = [t * (number + 1) // count for number in range(count)]
    return [
        Piece(clip_id=clip_id, number=number, count=count, first=first, last=last, tokens=(last - first) * h * w)
        for number, (first, last) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def divide_clip(clip: PackedClip, patch: Patch, capacity: int, *, stride: int) -> list[PackedClip]:
    """Return the clip itself when it has at most `capacity` tokens, else its pieces.

    Args:
        clip: with a latent [C, T, H, W].
        patch: latent cells of one token (t, h, w).
        capacity: the most tokens of a piece.
        stride: frames of the codec to one latent frame.

    Raises:
        ValueError: a single token frame has more than `capacity` tokens, or tokens of the clip were dropped already.
    """
    _, t, h, w = clip.latent.shape
    return [cut(clip, piece, patch, stride) for piece in divide(clip.clip_id, token_grid((t, h, w), patch), capacity)]


def cut(clip: PackedClip, piece: Piece, patch: Patch, stride: int) -> PackedClip:
    """Cut a piece out of its clip; its facts tell which it is (`piece`), and its own frames and times where the clip's do."""
    if piece.count == 1:
        return clip
    if clip.kept is not None:
        raise ValueError(f"clip {clip.clip_id} cannot be divided after tokens of it were dropped: divide it first")
    first, last = piece.first * patch[0], piece.last * patch[0]
    record = {"of": clip.clip_id, "number": piece.number, "count": piece.count, "latent_frames": [first, last]}
    facts = {**clip.facts, **_times(clip.facts, first, last, stride), "piece": record}
    return replace(clip, clip_id=piece.id, latent=clip.latent[:, first:last], facts=facts)


def _times(facts: Any, first: int, last: int, stride: int) -> dict[str, Any]:
    """Tell frames and seconds of the latent frames `[first, last)`; latent frame 0 is one frame, the others are `stride`."""
    if not {"fps", "frames", "start_s", "end_s"} <= facts.keys():
        return {}
    begin, end = (max(0, 1 + (number - 1) * stride) for number in (first, last))
    start_s = facts["start_s"] + begin / facts["fps"]
    end_s = facts["end_s"] if end >= facts["frames"] else facts["start_s"] + end / facts["fps"]
    return {"frames": end - begin, "start_s": start_s, "end_s": end_s, "duration_s": end_s - start_s}
