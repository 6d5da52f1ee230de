"""Stop anywhere, go on with any number of ranks: the same clips and captions in every step, each clip once an epoch."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import packing
from packing import Batch, PackedClip, ShardLoader, open_manifest

WORLD_SIZES = [1, 2, 3, 8, 64]
EPOCHS = 3
Step = list[tuple[str, str]]  # the clips of a step over all ranks, each with its caption, sorted

RANK = """
import datetime, hashlib, json, sys
from itertools import islice
import torch.distributed as dist
from packing import ShardLoader

corpus, place, state, first, last, rank, world_size = sys.argv[1:]
dist.init_process_group(
    "gloo", init_method=f"file://{place}", rank=int(rank), world_size=int(world_size), timeout=datetime.timedelta(seconds=60)
)
loader = ShardLoader(corpus, global_batch=5, rank=dist.get_rank(), world_size=dist.get_world_size(), seed=3, caption_drop=0.2)
if state != "none":
    loader.load_state_dict(json.loads(state))
for batch in islice(loader, int(last) - int(first)):
    mine = []
    for i, (clip_id, caption) in enumerate(zip(batch.clip_ids, batch.captions)):
        latents = batch.latents[batch.cu_seqlens[i] : batch.cu_seqlens[i + 1]].numpy().tobytes()
        text = batch.text[batch.cu_text[i] : batch.cu_text[i + 1]].float().numpy().tobytes()
        mine.append((clip_id, caption, batch.grid[i].tolist(), hashlib.sha256(latents + text).hexdigest()))
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, loader.state_dict())
    assert all(state == states[0] for state in states)
    if dist.get_rank() == 0:
        clips = sorted(clip for rank in everyone for clip in rank)
        print(json.dumps([hashlib.sha256(repr(clips).encode()).hexdigest(), states[0], [clip[0] for clip in clips]]))
dist.destroy_process_group()
"""


@cache
def ranks_of(corpus: str, world_size: int, global_batch: int, seed: int) -> list[ShardLoader]:
    """Loaders that are used for many examples: each example loads its own state into them."""
    return [
        ShardLoader(
            corpus, global_batch=global_batch, rank=rank, world_size=world_size, seed=seed, caption_drop=0.3, ahead=rank % 2
        )
        for rank in range(world_size)
    ]


def take(ranks: Sequence[ShardLoader], state: dict[str, Any], count: int) -> list[Step]:
    """Take so many steps on all ranks from `state` on."""
    for loader in ranks:
        loader.load_state_dict(state)
    steps: list[Sequence[Batch]] = list(itertools.islice(zip(*ranks, strict=True), count))
    return [sorted(clip for batch in step for clip in zip(batch.clip_ids, batch.captions, strict=True)) for step in steps]


@cache
def undisturbed(corpus: str, global_batch: int, seed: int) -> list[Step]:
    """Three epochs on one rank, without threads."""
    steps = EPOCHS * steps_of(corpus, global_batch)
    loader = ShardLoader(corpus, global_batch=global_batch, seed=seed, caption_drop=0.3, ahead=0)
    return [sorted(zip(batch.clip_ids, batch.captions, strict=True)) for batch in itertools.islice(loader, steps)]


def steps_of(corpus: str, global_batch: int) -> int:
    return -(-open_manifest(corpus)[0].rows // global_batch)


@given(data=st.data(), global_batch=st.sampled_from([1, 4, 7]), seed=st.sampled_from([0, 1 << 60]))
@settings(max_examples=15, deadline=None)
def test_stopping_anywhere_and_going_on_with_any_ranks_changes_no_step(
    corpus: str, data: st.DataObject, global_batch: int, seed: int
) -> None:
    expected = undisturbed(corpus, global_batch, seed)
    state = ShardLoader(corpus, global_batch=global_batch, seed=seed).state_dict()
    stops = sorted(data.draw(st.sets(st.integers(1, len(expected) - 1), max_size=4), label="stops"))
    found: list[Step] = []
    for first, last in itertools.pairwise([0, *stops, len(expected)]):
        ranks = ranks_of(corpus, data.draw(st.sampled_from(WORLD_SIZES), label="ranks"), global_batch, seed)
        found += take(ranks, state, last - first)
        state = json.loads(json.dumps(data.draw(st.sampled_from(ranks), label="whose state").state_dict()))
    assert found == expected


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_clip_comes_once_in_each_of_three_epochs(corpus: str, clips: list[PackedClip], world_size: int) -> None:
    ranks = ranks_of(corpus, world_size, 7, 0)
    steps = take(ranks, ShardLoader(corpus, global_batch=7).state_dict(), EPOCHS * steps_of(corpus, 7))
    assert steps == undisturbed(corpus, 7, 0)
    for epoch in thirds(steps):
        assert sorted(clip_id for step in epoch for clip_id, _ in step) == [clip.clip_id for clip in clips]


def thirds(steps: list[Step]) -> list[list[Step]]:
    size = len(steps) // EPOCHS
    return [steps[first : first + size] for first in range(0, len(steps), size)]


def test_captions_and_their_dropping_differ_between_epochs(corpus: str) -> None:
    first, second, third = (dict(itertools.chain.from_iterable(epoch)) for epoch in thirds(undisturbed(corpus, 4, 0)))
    assert first.keys() == second.keys() == third.keys()
    assert first != second != third


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_state_is_small_json_and_knows_no_ranks(corpus: str, world_size: int) -> None:
    ranks = ranks_of(corpus, world_size, 7, 0)
    take(ranks, ShardLoader(corpus, global_batch=7).state_dict(), 5)
    states = {json.dumps(loader.state_dict(), sort_keys=True) for loader in ranks}
    assert len(states) == 1
    assert len(min(states)) < 1024
    assert not any(word in min(states) for word in ("rank", "world"))


def run_processes(corpus: str, place: Path, state: dict[str, Any] | None, span: tuple[int, int], count: int) -> list[Any]:
    """Take steps `span` with so many processes; returns the hash, the state after and the clips of each step."""
    given = [corpus, str(place), json.dumps(state) if state else "none", *map(str, span)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *given, str(rank), str(count)],
            cwd=Path(packing.__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    return [json.loads(line) for line in outputs[0][0].splitlines() if line.startswith("[")]


@pytest.mark.integration
def test_gloo_processes_go_on_from_one_to_two_to_three(corpus: str, clips: list[PackedClip], tmp_path: Path) -> None:
    epoch = steps_of(corpus, 5)
    stops = [0, epoch // 2, epoch + 2, 2 * epoch]  # the second leg goes over the end of the first epoch
    alone = run_processes(corpus, tmp_path / "alone", None, (0, 2 * epoch), 1)
    found: list[Any] = []
    for count, span in enumerate(itertools.pairwise(stops), 1):
        state = found[-1][1] if found else None
        found += run_processes(corpus, tmp_path / f"group-{count}", state, span, count)
    assert len(found) == 2 * epoch
    assert found == alone
    for number in (0, 1):
        steps = found[number * epoch : (number + 1) * epoch]
        assert sorted(clip_id for step in steps for clip_id in step[2]) == [clip.clip_id for clip in clips]
    assert len({step[0] for step in found}) == 2 * epoch
