"""Pack latents of your own, look at the plan, and read them back. Needs `packing` alone: no pipeline, no model, no Ray.

    python examples/pack_your_own_latents.py /tmp/my_latents

Stand-ins are made up here for what you have: a latent [C, T, H, W] for each clip, normalised, and its captions with features.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader

import packing

PATCH = (1, 2, 2)  # latent cells of one token: (t, h, w)
CAPACITY = 4096  # tokens of a row
SIZES = [(1, 32, 32), (5, 16, 28), (9, 28, 16), (13, 32, 32), (21, 16, 16)]  # latent grids (T, H, W); the first is an image
CHANNELS, TEXT_WIDTH = 16, 64


def my_clips(sizes: Sequence[tuple[int, int, int]]) -> Iterator[packing.PackedClip]:
    """Yield your clips in the order of the lengths that were planned."""
    for number, size in enumerate(sizes):
        caption = packing.Caption(prompt="short", text=f"clip {number}", features=torch.randn(8, TEXT_WIDTH))
        yield packing.PackedClip(
            clip_id=f"clip-{number:06d}", latent=torch.randn(CHANNELS, *size), captions=[caption], facts={"duration_s": 1.0}
        )


def main() -> None:
    """Plan, report, write, read."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", help="an empty folder or bucket prefix")
    url = options.parse_args().folder

    # 1. Plan over token counts alone; the latents are not needed yet.
    sizes = [SIZES[number % len(SIZES)] for number in range(120)]
    grids = [packing.token_grid(size, PATCH) for size in sizes]
    lengths = [t * h * w for t, h, w in grids]
    rows = packing.plan_rows(lengths, capacity=CAPACITY, seed=0)
    print(packing.plan_report(rows, lengths, world_sizes=(2, 8), capacity=CAPACITY, grids=grids).to_text())

    # 2. Write the rows as shards, saying what made the latents and the features.
    manifest = packing.write_shards(
        rows,
        my_clips(sizes),
        url,
        codec=packing.CodecFacts(model="my-vae", subfolder="", weights="v1", channels=CHANNELS, stride=(4, 8, 8)),
        text_encoder=packing.TextEncoderFacts(
            model="my-text", subfolder="", tokenizer="", weights="v1", backend="none", width=TEXT_WIDTH, max_tokens=8
        ),
        patch=PATCH,
        sequence_length=CAPACITY,
        fps=16,
    )
    print(f"\n{manifest.clips} clips in {len(manifest.shards)} shards at {url}")

    # 3. Read them as one of two ranks would; the loader goes on for ever, epoch after epoch.
    loader = packing.ShardLoader(url, global_batch=4, rank=0, world_size=2)
    for batch in itertools.islice(loader, 3):
        print(f"latents {tuple(batch.latents.shape)} of {len(batch.clip_ids)} clips; state {loader.state_dict()}")

    # 4. Go on with any other number of ranks; in torch, from a DataLoader with or without workers.
    again = packing.ShardLoader(url, global_batch=4, rank=2, world_size=3, pin_memory=True)
    again.load_state_dict(loader.state_dict())
    for batch in itertools.islice(DataLoader(again, batch_size=None), 2):
        print(f"latents {tuple(batch.latents.shape)} of step {batch.step}; a state to save: {again.state_after(batch)}")


if __name__ == "__main__":
    main()
