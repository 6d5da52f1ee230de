"""Cut the batch of one step into passes that fit into memory; the sum of their gradients is the gradient of the step.

Cuts lie between clips, never inside one. Shapes: S tokens, s segments, M text tokens, D token width, E text width.
"""

from dataclasses import replace
from itertools import pairwise

from packing.batches import Batch


def split_batch(batch: Batch, max_tokens: int) -> list[Batch]:
    """Divide a batch into runs of whole clips of at most `max_tokens`; a longer clip is a pass of its own.

    A batch without clips is one empty pass, since every rank takes part in every step.
    """
    cuts = _cuts([int(offset) for offset in batch.cu_seqlens], max_tokens)
    return [_part(batch, first, last) for first, last in pairwise(cuts)] or [batch]


def _cuts(offsets: list[int], max_tokens: int) -> list[int]:
    """Segment numbers at which a pass begins, and the number of segments last."""
    cuts = [0]
    for segment, end in enumerate(offsets[1:]):
        if end - offsets[cuts[-1]] > max_tokens and segment > cuts[-1]:
            cuts.append(segment)
    return [*cuts, len(offsets) - 1] if len(offsets) > 1 else []


def _part(batch: Batch, first: int, last: int) -> Batch:
    tokens = slice(int(batch.cu_seqlens[first]), int(batch.cu_seqlens[last]))
    text = slice(int(batch.cu_text[first]), int(batch.cu_text[last]))
    return replace(
        batch,
        latents=batch.latents[tokens],
        cu_seqlens=batch.cu_seqlens[first : last + 1] - tokens.start,
        grid=batch.grid[first:last],
        clip_ids=batch.clip_ids[first:last],
        text=batch.text[text],
        cu_text=batch.cu_text[first : last + 1] - text.start,
        captions=batch.captions[first:last],
        kept=None if batch.kept is None else batch.kept[tokens],
    )
