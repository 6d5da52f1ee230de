"""Reading ahead keeps order and errors in their places and leaves no thread; memory in use is never handed out again."""

import gc
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from packing import Batch, Manifest, PackedClip, ShardLoader, open_manifest, read_index, read_row
from packing.errors import ShardError, StoreError
from packing.prefetch import GRAIN, BufferPool, read_ahead
from packing.store import Store

Write = Callable[..., Manifest]
few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # torch says it on a machine with one


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.latents, batch.cu_seqlens, batch.grid, batch.text, batch.cu_text]


def same(one: Batch, other: Batch) -> bool:
    return one.clip_ids == other.clip_ids and all(map(torch.equal, tensors(one), tensors(other)))


@given(depth=st.integers(0, 5), count=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_items_come_in_the_order_of_the_plan(depth: int, count: int) -> None:
    def slow_when_even(item: int) -> int:
        time.sleep(0.001 * (item % 2 == 0))
        return -item

    assert list(read_ahead(range(count), slow_when_even, depth)) == [-item for item in range(count)]
    assert threads() == []


def test_no_more_than_the_depth_is_read_ahead() -> None:
    begun: list[int] = []
    items = read_ahead(itertools.count(), begun.append, 3)
    next(items)
    time.sleep(0.05)
    assert len(begun) == 4
    items.close()


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_an_error_comes_in_the_place_of_its_item(depth: int) -> None:
    def refuse_three(item: int) -> int:
        if item == 3:
            raise ShardError("three")
        return item

    items = read_ahead(range(10), refuse_three, depth)
    assert list(itertools.islice(items, 3)) == [0, 1, 2]
    with pytest.raises(ShardError, match="three"):
        next(items)
    assert threads() == []


def test_threads_end_when_an_iterator_is_forgotten(corpus: str) -> None:
    batches = iter(ShardLoader(corpus, global_batch=4))
    next(batches)
    assert threads() != []
    del batches
    gc.collect()
    assert threads() == []


def test_an_exception_in_the_consumer_leaves_no_thread(corpus: str) -> None:
    def train() -> None:
        for _ in ShardLoader(corpus, global_batch=4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    gc.collect()
    assert threads() == []


@given(sizes=st.lists(st.integers(1, 3 * GRAIN), min_size=2, max_size=6), spares=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_memory_in_use_is_not_handed_out_again(sizes: list[int], spares: int) -> None:
    pool = BufferPool(spares)
    pool.take(sizes[0])[:] = 255  # at once free again
    held = []
    for number, size in enumerate(sizes):
        memory = pool.take(size)
        memory[:] = number
        held.append(torch.from_numpy(memory[size // 2 :])[:1])  # only a tensor of a part stays
        del memory
    assert [int(part) for part in held] == list(range(len(sizes)))


def test_memory_is_used_again_when_its_last_tensor_is_gone() -> None:
    pool = BufferPool(2)
    memory = pool.take(1000)
    address, part = memory.ctypes.data, torch.from_numpy(memory[10:20]).view(torch.float16)
    del memory
    assert pool.take(1000).ctypes.data != address
    del part
    assert address in {memory.ctypes.data for memory in [pool.take(1000), pool.take(1000)]}


def test_a_pool_keeps_no_more_than_its_spares() -> None:
    pool = BufferPool(1)
    held = [pool.take(1) for _ in range(5)]
    held.clear()
    assert len(pool._spares) == 1


@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_that_are_kept_never_change(corpus: str, ahead: int) -> None:
    loader = ShardLoader(corpus, global_batch=2, ahead=ahead)
    kept = list(itertools.islice(loader, 20))
    copies = [[tensor.clone() for tensor in tensors(batch)] for batch in kept]
    for _ in itertools.islice(ShardLoader(corpus, global_batch=2, seed=9), 20):
        pass
    for batch in itertools.islice(loader, 40):
        batch.latents.fill_(-1)
        batch.text.fill_(-1)
    for batch, copy in zip(kept, copies, strict=True):
        assert all(map(torch.equal, tensors(batch), copy))


def test_a_batch_may_be_changed_in_place(corpus: str) -> None:
    rows = open_manifest(corpus)[0].rows
    first = {batch.clip_ids: batch.latents.fill_(7) for batch in itertools.islice(ShardLoader(corpus, global_batch=1), rows)}
    again = ShardLoader(corpus, global_batch=1)
    assert all(not torch.equal(batch.latents, first[batch.clip_ids]) for batch in itertools.islice(again, rows))


@pytest.mark.parametrize("settings", [{"ahead": 0}, {"ahead": 1}, {"ahead": 5}, {"recheck": True}])
def test_reading_ahead_and_checking_change_no_batch(corpus: str, settings: dict[str, Any]) -> None:
    batches = zip(ShardLoader(corpus, global_batch=3, **settings), ShardLoader(corpus, global_batch=3), strict=True)
    assert all(same(one, other) for one, other in itertools.islice(batches, 30))


def test_a_state_tells_what_was_taken_not_what_was_read_ahead(corpus: str) -> None:
    loader, plain = ShardLoader(corpus, global_batch=4, ahead=5), ShardLoader(corpus, global_batch=4, ahead=0)
    assert loader.state_dict() == plain.state_dict()
    for _ in zip(itertools.islice(loader, 9), plain, strict=False):
        assert loader.state_dict() == plain.state_dict()


def test_a_state_loaded_while_iterating_holds_from_the_next_batch_on(corpus: str) -> None:
    loader = ShardLoader(corpus, global_batch=4)
    start, batches = loader.state_dict(), iter(loader)
    first = next(batches)
    next(batches)
    loader.load_state_dict(start)
    assert same(next(batches), first)


def test_a_damaged_row_is_refused_at_its_own_step(corpus: str, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "damaged")
    expected = list(itertools.islice(ShardLoader(corpus, global_batch=1), 12))
    manifest, base = open_manifest(str(tmp_path / "damaged"))
    found = {tuple(row.clip_ids): (entry, row) for entry in manifest.shards for row in read_index(Store(base), entry)}
    entry, row = found[expected[6].clip_ids]
    data = bytearray(Store(base).read(entry.name))
    data[row.offset + row.size - 1] ^= 1
    Path(base, entry.name).write_bytes(data)
    loader = ShardLoader(base, global_batch=1, ahead=4)
    batches = iter(loader)
    assert all(same(next(batches), batch) for batch in expected[:6])
    with pytest.raises(ShardError, match=f"{entry.name} is damaged at row {row.key}"):
        next(batches)
    assert loader.state_dict()["step"] == 6


@pytest.mark.parametrize("recheck", [False, True])
def test_a_shard_that_changes_between_epochs_is_checked_again(corpus: str, tmp_path: Path, recheck: bool) -> None:
    shutil.copytree(corpus, tmp_path / "changed")
    loader = ShardLoader(str(tmp_path / "changed"), global_batch=1, recheck=recheck, ahead=0)
    rows = loader.manifest.rows
    list(itertools.islice(loader, rows))
    shard = min((tmp_path / "changed").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=f"{shard.name} is damaged"):
        list(itertools.islice(loader, rows))


def test_a_shard_that_vanishes_between_epochs_is_named(corpus: str, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "gone")
    loader = ShardLoader(str(tmp_path / "gone"), global_batch=1)
    list(itertools.islice(loader, loader.manifest.rows))
    shard = min((tmp_path / "gone").glob("*.tar"))
    shard.unlink()
    with pytest.raises(ShardError, match=f"{shard.name} is missing"):
        list(itertools.islice(loader, loader.manifest.rows))


@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_bit_flipped_anywhere_in_a_row_is_refused_by_name(tmp_path_factory: Any, corpus: str, at: int, bit: int) -> None:
    manifest, base = open_manifest(corpus)
    entry, store = manifest.shards[0], Store(str(tmp_path_factory.mktemp("flipped")))
    row = read_index(Store(base), entry)[1]
    members = [*range(row.json_offset, row.json_offset + row.json_size), *range(row.offset, row.offset + row.size)]
    data = bytearray(Store(base).read(entry.name))
    data[members[at % len(members)]] ^= 1 << bit
    store.put_once(entry.name, bytes(data))
    with pytest.raises(ShardError, match=f"{entry.name} is damaged at row {row.key}"):
        read_row(store, entry, row)


def test_a_remote_corpus_gives_the_same_batches(corpus: str, clips: list[PackedClip], write: Write) -> None:
    write("memory://reader/packed", clips, shard_bytes=6000)
    batches = zip(ShardLoader("memory://reader/packed", global_batch=4), ShardLoader(corpus, global_batch=4), strict=True)
    assert all(same(one, other) for one, other in itertools.islice(batches, 20))


@pytest.mark.parametrize("url", ["memory://span", ""])
def test_a_span_fills_memory_from_its_stretch_of_a_file(url: str, tmp_path: Path) -> None:
    store = Store(url or str(tmp_path))
    store.put_once("some", bytes(range(100)))
    with store.span("some", 10, 50) as span:
        into = np.zeros(20, dtype=np.uint8)
        assert span.fill(5, into) == 20
        assert into.tolist() == list(range(15, 35))
    with store.span("some", 90, 50) as span:
        assert span.fill(0, into) == 10


def test_a_span_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*nothing"), Store(str(tmp_path)).span("nothing", 0, 1):
        pass


def test_a_loader_is_the_dataset_of_a_torch_data_loader(corpus: str) -> None:
    pairs = zip(
        DataLoader(ShardLoader(corpus, global_batch=4), batch_size=None), ShardLoader(corpus, global_batch=4), strict=True
    )
    assert all(same(one, other) for one, other in itertools.islice(pairs, 20))


def test_a_torch_data_loader_resumes_with_the_state_of_its_dataset(corpus: str) -> None:
    dataset, again = (ShardLoader(corpus, global_batch=4, world_size=2, rank=1) for _ in range(2))
    batches = iter(DataLoader(dataset, batch_size=None))
    next(batches)
    again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    assert same(next(iter(DataLoader(again, batch_size=None))), next(batches))


@few_cores
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_torch_data_loader_give_the_same_batches(corpus: str, workers: int) -> None:
    plain = ShardLoader(corpus, global_batch=4, rank=1, world_size=2)
    batches = DataLoader(ShardLoader(corpus, global_batch=4, rank=1, world_size=2), batch_size=None, num_workers=workers)
    count = 2 * -(-plain.manifest.rows // 4) + 3
    pairs = zip(itertools.islice(batches, count), plain, strict=False)
    assert [same(one, other) and one.step == other.step for one, other in pairs] == [True] * count


# A spawned worker that is dropped while its queue still sends can abort as its interpreter ends, which torch tells as it is
# collected. What came before is what counts here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@few_cores
def test_batches_of_spawned_workers_are_resumed_by_any_number_of_them(corpus: str) -> None:
    expected = list(itertools.islice(ShardLoader(corpus, global_batch=4), 9))
    loader = ShardLoader(corpus, global_batch=4)
    first = list(itertools.islice(DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="spawn"), 4))
    state = json.loads(json.dumps(loader.state_after(first[-1])))
    for workers in (0, 1):
        again = ShardLoader(corpus, global_batch=4)
        again.load_state_dict(state)
        rest = itertools.islice(DataLoader(again, batch_size=None, num_workers=workers), 5)
        assert all(map(same, [*first, *rest], expected))


def test_the_state_after_a_batch_is_that_of_its_loader(corpus: str) -> None:
    loader = ShardLoader(corpus, global_batch=4)
    assert all(loader.state_after(batch) == loader.state_dict() for batch in itertools.islice(loader, 12))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_of_torchdata_resumes(corpus: str, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    expected = list(itertools.islice(ShardLoader(corpus, global_batch=4), 12))
    loader = stateful(ShardLoader(corpus, global_batch=4), batch_size=None, num_workers=workers)
    first = list(itertools.islice(loader, 5))
    again = stateful(ShardLoader(corpus, global_batch=4), batch_size=None, num_workers=workers)
    again.load_state_dict(loader.state_dict())
    assert all(map(same, [*first, *itertools.islice(again, 7)], expected))


def test_a_state_of_one_of_several_workers_is_refused_elsewhere(corpus: str) -> None:
    loader = ShardLoader(corpus, global_batch=4)
    loader.load_state_dict({**loader.state_dict(), "worker": [1, 2]})
    with pytest.raises(ShardError, match="state_after"):
        next(iter(loader))


def test_without_cuda_pinning_changes_nothing(corpus: str) -> None:
    pairs = zip(ShardLoader(corpus, global_batch=4, pin_memory=True), ShardLoader(corpus, global_batch=4), strict=True)
    assert all(same(one, other) for one, other in itertools.islice(pairs, 5))


@pytest.mark.parametrize("wrong", [{"ahead": -1}, {"global_batch": 0}, {"rank": 1}, {"caption_drop": 1.5}])
def test_a_number_out_of_range_is_refused(corpus: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        ShardLoader(corpus, **{"global_batch": 4, **wrong})
