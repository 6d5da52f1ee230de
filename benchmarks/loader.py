"""How fast rows reach a trainer: our loader, its peers, and the limits of the machine, in one run over the same made-up rows.

    python benchmarks/loader.py --rows 200 --repeats 7

Each row holds 4 MiB of latents and 2 MiB of text features, in one process on a warm page cache. The
contenders take turns and the fastest turn of each counts, since other work on the machine can only slow it down. Peers write
the rows in their own formats first; one that is not installed is named as such.
"""

import argparse
import importlib.metadata
import itertools
import mmap
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import webdataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `packing` would be packing.py of this folder

import packing
from packing import Caption, CodecFacts, PackedClip, TextEncoderFacts

LATENT = (16, 8, 64, 64)  # [C, T, H, W]: 8,192 tokens of 64 numbers with the patch below
PATCH = (1, 2, 2)
TEXT = (256, 1024)  # [m, E]
CLIPS_PER_ROW = 4
TOKENS_PER_ROW = CLIPS_PER_ROW * 8_192
ROW_BYTES = 6 << 20
IN_FLIGHT = 8  # rows that live at once, as when batches are read ahead: a copy into them goes to memory, not to a cache
DISTRIBUTIONS = ["torch", "numpy", "safetensors", "google-crc32c", "webdataset", "litdata", "mosaicml-streaming"]

Source = Iterator[int]  # reads the rows; each item is the number of rows just read


@dataclass(kw_only=True)
class Contender:
    """One way to read all rows: `start` opens it anew; besides the first batch, `untimed` rows come before the clock starts."""

    name: str
    start: Callable[[], Source]
    untimed: int = 0
    rows_per_s: float = 0.0
    first_s: float = float("inf")


def main() -> None:
    """Write the rows, let the contenders take turns, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=200)
    options.add_argument("--repeats", type=int, default=7)
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # mosaicml-streaming's are not
    with tempfile.TemporaryDirectory(prefix="clipmill-loader-") as folder:
        url = write_corpus(Path(folder, "packed"), given.rows)
        contenders, missing = open_contenders(url, Path(folder), given.rows)
        load = os.getloadavg()
        for _ in range(given.repeats):
            for contender in contenders:
                take_turn(contender, given.rows)
        print_table(contenders, missing, given.rows, load)
        print_waits(url, given.repeats)


def write_corpus(folder: Path, rows: int) -> str:
    """Write rows of four clips; few tensors are shared by many clips, since nothing here compresses."""
    latents = [torch.randn(LATENT).half() for _ in range(7)]
    texts = [torch.randn(TEXT).bfloat16() for _ in range(5)]
    clips = (
        PackedClip(
            clip_id=f"{number:032x}",
            latent=latents[number % 7],
            captions=[Caption(prompt="dense", text=f"clip {number}", features=texts[number % 5])],
            facts={"source": f"file:///{number}.mp4", "duration_s": 2.0},
        )
        for number in range(rows * CLIPS_PER_ROW)
    )
    packing.write_shards(
        [np.arange(first, first + CLIPS_PER_ROW) for first in range(0, rows * CLIPS_PER_ROW, CLIPS_PER_ROW)],
        clips,
        str(folder),
        codec=CodecFacts(model="none", subfolder="", weights="", channels=LATENT[0], stride=(4, 8, 8)),
        text_encoder=TextEncoderFacts(
            model="none", subfolder="", tokenizer="", weights="", backend="", width=TEXT[1], max_tokens=TEXT[0]
        ),
        patch=PATCH,
        sequence_length=TOKENS_PER_ROW,
        fps=16.0,
        shard_bytes=256 << 20,
    )
    return str(folder)


def take_turn(contender: Contender, rows: int) -> None:
    """Open it, time its first batch, read the untimed rows, then time as many rows as there are, or as still come."""
    begin = time.perf_counter()
    source = contender.start()
    next(source)
    contender.first_s = min(contender.first_s, time.perf_counter() - begin)
    read_rows(source, contender.untimed)
    begin = time.perf_counter()
    count = read_rows(source, rows)
    contender.rows_per_s = max(contender.rows_per_s, count / (time.perf_counter() - begin))
    source.close()  # type: ignore[attr-defined]


def read_rows(source: Source, rows: int) -> int:
    """Read so many rows, or as many as there are."""
    count = 0
    while count < rows and (more := next(source, 0)):
        count += more
    return count


def open_contenders(url: str, folder: Path, rows: int) -> tuple[list[Contender], list[str]]:
    """Return what can run here, the limits first, and a line for each peer that cannot."""
    shards = sorted(Path(url).glob("*.tar"))
    source = np.concatenate([np.fromfile(shard, dtype=np.uint8) for shard in shards])[: rows * ROW_BYTES].reshape(
        rows, ROW_BYTES
    )
    contenders = [
        Contender(name="memcpy, rows in rotation", start=lambda: copy_rows(source, IN_FLIGHT)),
        Contender(name="memcpy, into one buffer that stays in the cache", start=lambda: copy_rows(source, 1)),
        Contender(name="plain file read", start=lambda: read_files(shards)),
    ]
    for batch, ahead in itertools.product((1, 8), (2, 0)):
        what = f"clipmill, {batch} row{'s' * (batch > 1)} a step, {f'{ahead} ahead' if ahead else 'no threads'}"
        settings = {"global_batch": batch, "ahead": ahead}
        once, always = partial(ours, url, recheck=False, **settings), partial(ours, url, recheck=True, **settings)
        contenders.append(Contender(name=f"{what}, crc once: later epochs", start=once, untimed=rows))
        contenders.append(Contender(name=f"{what}, crc always: first epoch", start=always, untimed=4 * batch))
    contenders.append(Contender(name="webdataset + safetensors.torch.load", start=partial(stock, shards)))
    missing = []
    for name, write in (("litdata", write_litdata), ("mosaicml-streaming", write_streaming)):
        try:
            contenders += [Contender(name=f"{name}, {how}", start=start) for how, start in write(url, folder / name).items()]
        except Exception as error:  # foreign libraries raise anything, at import too: the reason goes into the table
            missing.append(f"{name}: does not run here, {type(error).__name__}: {error}".splitlines()[0])
    return contenders, missing


def copy_rows(source: np.ndarray, buffers: int) -> Source:
    """Copy every row into page-aligned buffers that are used in turn."""
    into = [aligned(ROW_BYTES) for _ in range(buffers)]
    for number, row in enumerate(source):
        np.copyto(into[number % buffers], row)
        yield 1


def read_files(shards: list[Path]) -> Source:
    """Read the shards from end to end, a row's bytes at a time, into one reused, page-aligned buffer."""
    into = aligned(ROW_BYTES)
    for shard in shards:
        with open(shard, "rb", buffering=0) as file:
            while file.readinto(into.data) == ROW_BYTES:
                yield 1


def aligned(size: int) -> np.ndarray:
    """Return page-aligned memory that has been written to."""
    memory = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    memory[:] = 1
    return memory


def ours(url: str, **settings: Any) -> Source:
    """Read batches with our loader, epoch after epoch; all bytes of a row are in its batch."""
    with closing(iter(packing.ShardLoader(url, **settings))) as batches:  # type: ignore[type-var]
        for batch in batches:
            yield batch.latents.shape[0] // TOKENS_PER_ROW


def stock(shards: list[Path]) -> Source:
    """Read the same shards with stock webdataset and safetensors' own loader of bytes."""
    for sample in webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False):
        yield counted(safetensors.torch.load(sample["tokens.safetensors"]))


def counted(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return 1 for a row that holds what it should."""
    assert tensors["latents"].shape[0] == TOKENS_PER_ROW
    assert tensors["text"].shape[0] == CLIPS_PER_ROW * TEXT[0]
    return 1


def rows_of(url: str) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the latents and the text of each row for peers to write; the text as int16, since their formats have no bf16."""
    for batch in itertools.islice(packing.ShardLoader(url, global_batch=1), packing.open_manifest(url)[0].rows):
        yield {"latents": batch.latents, "text": batch.text.view(torch.int16)}


def write_litdata(url: str, folder: Path) -> dict[str, Callable[[], Source]]:
    """Write the rows as litdata chunks of its tensors; return readers of its dataset."""
    from litdata import StreamingDataset
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes="256MB")
    for number, row in enumerate(rows_of(url)):
        cache[number] = row
    cache.done()
    cache.merge()

    def read(*, copy: bool) -> Source:
        for row in StreamingDataset(str(folder), shuffle=False):
            yield counted({name: tensor.clone() for name, tensor in row.items()} if copy else row)

    return {
        "views of its mapped file: no byte is read": partial(read, copy=False),
        "those tensors cloned": partial(read, copy=True),
    }


def write_streaming(url: str, folder: Path) -> dict[str, Callable[[], Source]]:
    """Write the rows as MDS of numpy arrays; return a reader of its dataset."""
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    columns = {"latents": "ndarray:float16", "text": "ndarray:int16"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=256 << 20) as writer:
        for row in rows_of(url):
            writer.write({name: tensor.numpy() for name, tensor in row.items()})

    def read() -> Source:
        clean_stale_shared_memory()
        for row in StreamingDataset(local=str(folder), shuffle=False, batch_size=1):
            yield counted({name: torch.from_numpy(array) for name, array in row.items()})

    return {"MDS of arrays": read}


def print_table(contenders: list[Contender], missing: list[str], rows: int, load: tuple[float, ...]) -> None:
    """Print the machine, the table and what did not run, as Markdown."""
    print(f"{platform.processor() or platform.machine()}, {cpu_name()}, {os.cpu_count()} cores, {platform.platform()}; Python")
    print(f"{platform.python_version()}; load average at the start {', '.join(f'{x:.1f}' for x in load)}; {versions()};")
    print(f"{rows} rows of {ROW_BYTES >> 20} MiB.\n")
    print(f"| {'what':64} | GB/s | rows/s | of memcpy | first batch |")
    print(f"|{'-' * 66}|-----:|-------:|----------:|------------:|")
    limit = contenders[0].rows_per_s
    for c in contenders:
        speed = c.rows_per_s * ROW_BYTES / 1e9
        print(
            f"| {c.name:64} | {speed:4.1f} | {c.rows_per_s:6.0f} | {c.rows_per_s / limit:8.0%} | {1000 * c.first_s:8.1f} ms |"
        )
    for line in missing:
        print(f"\n{line}")


def print_waits(url: str, repeats: int) -> None:
    """Print which share of a step a trainer waits for its batch, when its device takes so long for one; every crc is checked.

    A step of one row of 32,768 tokens takes 0.5 s at 68,000 tokens/s, which is 0.7 B parameters on an H200 at 40 % of its peak.
    """
    print("\nData wait: share of a step that the trainer waits, its device busy elsewhere; median step of the best run.\n")
    print("| rows a step | seconds a step | waits | share | longest wait |\n|---:|---:|---:|---:|---:|")
    for batch, step_s in itertools.product((1, 8), (0.05, 0.1, 0.5)):
        runs = [waits(url, batch, step_s) for _ in range(min(repeats, 3))]
        best = min(runs, key=np.median)
        median = float(np.median(best))
        print(f"| {batch} | {step_s} | {1000 * median:.2f} ms | {median / step_s:.2%} | {1000 * max(best):.2f} ms |")


def waits(url: str, batch: int, step_s: float) -> list[float]:
    """Return how long each of ten steps after the first waits for its batch, in seconds."""
    found = []
    with closing(iter(packing.ShardLoader(url, global_batch=batch, recheck=True))) as batches:  # type: ignore[type-var]
        held = next(batches)
        for _ in range(10):
            time.sleep(step_s)  # as a host that has given its device the step does
            begin = time.perf_counter()
            held = next(batches)
            found.append(time.perf_counter() - begin)
    del held
    return found


def cpu_name() -> str:
    """Name the processor, as Linux does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def versions() -> str:
    """Name the versions of what takes part."""
    found = []
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
