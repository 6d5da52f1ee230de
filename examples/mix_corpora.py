"""Mix images and videos that were packed apart: images first, then three rows of video to one of images. Needs `packing` alone.

    python examples/mix_corpora.py /tmp/my_mixture

Stand-ins are made up for latents, as in `pack_your_own_latents.py`. A run of clipmill gives such corpora by `pack.kind=images`
and `pack.kind=videos`, and `clipmill train MIXTURE.yaml` trains on the file that is written here.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

import packing
from packing.shards import ClipTuple

PATCH, CAPACITY, CHANNELS, TEXT_WIDTH = (1, 2, 2), 1024, 16, 64
CODEC = packing.CodecFacts(model="my-vae", subfolder="", weights="v1", channels=CHANNELS, stride=(4, 8, 8))
TEXT_ENCODER = packing.TextEncoderFacts(
    model="my-text", subfolder="", tokenizer="", weights="v1", backend="none", width=TEXT_WIDTH, max_tokens=8
)
MIXTURE = """\
sources:
  - {{shards: {folder}/images, weight: 1}}
  - {{shards: {folder}/videos, weight: 3}}
curriculum:
  - {{steps: 2, weights: [1, 0]}}
"""


def made_up(kind: str, count: int, size: tuple[int, int, int]) -> Iterator[ClipTuple]:
    """Yield clips as plain tuples: id, latent [C, T, H, W], captions by prompt, features of each caption."""
    for number in range(count):
        latent = torch.randn(CHANNELS, *size)
        yield f"{kind}-{number:04d}", latent, {"short": f"{kind} {number}"}, [torch.randn(5, TEXT_WIDTH)]


def pack(folder: Path, kind: str, count: int, size: tuple[int, int, int]) -> None:
    """Plan and write one corpus."""
    t, h, w = packing.token_grid(size, PATCH)
    packing.write_shards(
        packing.plan_rows([t * h * w] * count, capacity=CAPACITY),
        made_up(kind, count, size),
        str(folder / kind),
        codec=CODEC,
        text_encoder=TEXT_ENCODER,
        patch=PATCH,
        sequence_length=CAPACITY,
        fps=16,
    )


def main() -> None:
    """Pack two corpora, write the mixture down, and count what comes in each step."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="an empty folder")
    folder = options.parse_args().folder
    pack(folder, "images", 200, (1, 32, 32))
    pack(folder, "videos", 40, (9, 16, 28))
    (folder / "mixture.yaml").write_text(MIXTURE.format(folder=folder))
    loader = packing.open_loader(str(folder / "mixture.yaml"), global_batch=8)
    for batch in islice(loader, 5):
        print(f"step {batch.epoch}: {dict(Counter(clip_id[:6] for clip_id in batch.clip_ids))} clips")
    print(f"state {loader.state_dict()}")


if __name__ == "__main__":
    main()
