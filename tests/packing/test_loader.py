"""The same global batches for any number of ranks, from any point on; captions belong to clips, not to ranks."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from packing import Batch, Manifest, PackedClip, ShardLoader, open_manifest, unpatchify
from packing.errors import ShardError

Write = Callable[..., Manifest]
GLOBAL_BATCH = 4
WORLD_SIZES = [1, 2, 3, 8]


def loaders(url: str, world_size: int, **settings: Any) -> list[ShardLoader]:
    chosen = {"global_batch": GLOBAL_BATCH, **settings}
    return [ShardLoader(url, rank=rank, world_size=world_size, **chosen) for rank in range(world_size)]


def global_steps(ranks: list[ShardLoader]) -> Iterator[list[Batch]]:
    """Step after step, what all ranks get."""
    return (list(step) for step in zip(*ranks, strict=True))


def clip_sets(ranks: list[ShardLoader], steps: int) -> list[list[str]]:
    """The clip ids of each step over all ranks."""
    taken = itertools.islice(global_steps(ranks), steps)
    return [sorted(clip_id for batch in step for clip_id in batch.clip_ids) for step in taken]


def epoch_of(ranks: list[ShardLoader], epoch: int = 0) -> list[Batch]:
    """All batches of all ranks in one epoch."""
    steps = itertools.takewhile(lambda step: step[0].epoch <= epoch, global_steps(ranks))
    return [batch for step in steps for batch in step if batch.epoch == epoch]


def captions_of(batches: list[Batch]) -> dict[str, str]:
    return {clip_id: caption for batch in batches for clip_id, caption in zip(batch.clip_ids, batch.captions, strict=True)}


def spans(tensor: Tensor, offsets: Tensor) -> list[Tensor]:
    """The parts of `tensor` between neighbouring offsets."""
    return [tensor[first:last] for first, last in itertools.pairwise(offsets.tolist())]


@pytest.fixture(scope="module")
def steps_per_epoch(corpus: str) -> int:
    steps = -(-open_manifest(corpus)[0].rows // GLOBAL_BATCH)
    assert steps > 4
    return steps


@pytest.fixture(scope="module")
def undisturbed(corpus: str, steps_per_epoch: int) -> list[list[str]]:
    """The clips of each step of two epochs and a half, on one rank."""
    return clip_sets(loaders(corpus, 1), steps_per_epoch * 5 // 2)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_any_number_of_ranks_sees_the_same_global_batches(corpus: str, undisturbed: list[list[str]], world_size: int) -> None:
    assert clip_sets(loaders(corpus, world_size), len(undisturbed)) == undisturbed


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_clip_comes_once_an_epoch(corpus: str, clips: list[PackedClip], world_size: int) -> None:
    for epoch in (0, 1):
        batches = epoch_of(loaders(corpus, world_size), epoch)
        assert sorted(clip_id for batch in batches for clip_id in batch.clip_ids) == [clip.clip_id for clip in clips]


def test_epochs_and_seeds_have_orders_of_their_own(corpus: str, steps_per_epoch: int) -> None:
    two = clip_sets(loaders(corpus, 1), 2 * steps_per_epoch)
    other_seed = clip_sets(loaders(corpus, 1, seed=1), steps_per_epoch)
    assert two[:steps_per_epoch] != two[steps_per_epoch:]
    assert two[:steps_per_epoch] != other_seed


def test_batches_number_their_epoch_and_step(corpus: str, steps_per_epoch: int) -> None:
    batches = itertools.islice(ShardLoader(corpus, global_batch=GLOBAL_BATCH), steps_per_epoch + 2)
    first = [(0, step) for step in range(steps_per_epoch)]
    assert [(batch.epoch, batch.step) for batch in batches] == [*first, (1, 0), (1, 1)]


@pytest.mark.parametrize("stop", ["first step", "mid-epoch", "end of epoch", "next epoch"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_state_resumes_where_it_was_taken_on_any_world_size(
    corpus: str, undisturbed: list[list[str]], steps_per_epoch: int, stop: str, world_size: int
) -> None:
    done = {"first step": 1, "mid-epoch": 3, "end of epoch": steps_per_epoch, "next epoch": steps_per_epoch + 2}[stop]
    before = loaders(corpus, 2)
    clip_sets(before, done)
    state = json.loads(json.dumps(before[0].state_dict()))
    after = loaders(corpus, world_size)
    for loader in after:
        loader.load_state_dict(state)
    assert clip_sets(after, len(undisturbed) - done) == undisturbed[done:]


def test_a_resumed_rank_gets_the_very_same_tensors(corpus: str) -> None:
    loader, again = (ShardLoader(corpus, global_batch=GLOBAL_BATCH, rank=1, world_size=2) for _ in range(2))
    batches = iter(loader)
    next(batches)
    again.load_state_dict(loader.state_dict())
    expected, found = next(batches), next(iter(again))
    assert found.captions == expected.captions
    for name in ("latents", "cu_seqlens", "grid", "text", "cu_text"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_every_rank_has_the_same_state(corpus: str) -> None:
    ranks = loaders(corpus, 3)
    clip_sets(ranks, 5)
    assert ranks[0].state_dict() == ranks[1].state_dict() == ranks[2].state_dict()


def test_a_state_is_less_than_a_kilobyte_of_json(corpus: str) -> None:
    assert len(json.dumps(ShardLoader(corpus, global_batch=1 << 40, seed=1 << 62).state_dict())) < 1024


def test_a_state_of_another_corpus_is_refused(corpus: str, clips: list[PackedClip], write: Write, tmp_path: Path) -> None:
    write(str(tmp_path), clips[:7])
    state = ShardLoader(str(tmp_path), global_batch=GLOBAL_BATCH).state_dict()
    with pytest.raises(ShardError, match=f"cannot resume: .*manifest={state['manifest']}"):
        ShardLoader(corpus, global_batch=GLOBAL_BATCH).load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("seed", 5), ("global_batch", 3)])
def test_a_state_of_another_order_is_refused_with_its_reason(corpus: str, name: str, value: int) -> None:
    state = ShardLoader(corpus, **{"global_batch": GLOBAL_BATCH, name: value}).state_dict()
    with pytest.raises(ShardError, match=f"cannot resume: the state has {name}={value}, this loader"):
        ShardLoader(corpus, global_batch=GLOBAL_BATCH).load_state_dict(state)


def test_segments_are_the_latents_that_were_packed(corpus: str, clips: list[PackedClip]) -> None:
    latents = {clip.clip_id: clip.latent.half() for clip in clips}
    for batch in epoch_of(loaders(corpus, 2)):
        parts = spans(batch.latents, batch.cu_seqlens)
        for clip_id, part, grid in zip(batch.clip_ids, parts, batch.grid.tolist(), strict=True):
            assert torch.equal(unpatchify(part, grid, (1, 2, 2), 4), latents[clip_id])


def test_the_text_of_a_segment_is_that_of_its_chosen_caption(corpus: str, clips: list[PackedClip]) -> None:
    features = {(clip.clip_id, c.text): c.features for clip in clips for c in clip.captions}
    for batch in epoch_of(loaders(corpus, 2)):
        parts = spans(batch.text, batch.cu_text)
        for clip_id, caption, part in zip(batch.clip_ids, batch.captions, parts, strict=True):
            assert torch.equal(part, features[clip_id, caption])


def test_a_batch_has_the_types_that_it_promises(corpus: str) -> None:
    batch = next(iter(ShardLoader(corpus, global_batch=GLOBAL_BATCH)))
    types = [t.dtype for t in (batch.latents, batch.cu_seqlens, batch.grid, batch.text, batch.cu_text)]
    assert types == [torch.float16, torch.int32, torch.int32, torch.bfloat16, torch.int32]


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_caption_choice_and_drop_do_not_depend_on_the_world_size(corpus: str, world_size: int) -> None:
    alone = captions_of(epoch_of(loaders(corpus, 1, caption_drop=0.4)))
    assert captions_of(epoch_of(loaders(corpus, world_size, caption_drop=0.4))) == alone


def test_caption_choice_changes_with_the_epoch_and_the_seed(corpus: str) -> None:
    first = captions_of(epoch_of(loaders(corpus, 1)))
    assert captions_of(epoch_of(loaders(corpus, 1), epoch=1)) != first
    assert captions_of(epoch_of(loaders(corpus, 1, seed=1))) != first


def test_every_prompt_of_a_corpus_is_chosen_at_some_time(corpus: str) -> None:
    chosen = captions_of(epoch_of(loaders(corpus, 1))).values()
    assert {caption.split()[0] for caption in chosen} == {"short", "dense", "tags"}


def test_caption_drop_of_one_leaves_empty_spans(corpus: str) -> None:
    for batch in epoch_of(loaders(corpus, 1, caption_drop=1.0)):
        assert set(batch.captions) == {""}
        assert batch.cu_text.tolist() == [0] * (len(batch.clip_ids) + 1)
        assert (batch.text.shape, batch.text.dtype) == ((0, 6), torch.bfloat16)


def test_caption_drop_takes_about_its_share(corpus: str) -> None:
    captions = [c for epoch in range(3) for c in captions_of(epoch_of(loaders(corpus, 1, caption_drop=0.5), epoch)).values()]
    assert 0.3 < captions.count("") / len(captions) < 0.7


def test_a_rank_without_rows_gets_an_empty_batch(corpus: str) -> None:
    steps = next(global_steps(loaders(corpus, 3, global_batch=1)))
    empty = [batch for batch in steps if not batch.clip_ids]
    assert len(empty) == 2
    for batch in empty:
        assert (batch.latents.shape, batch.latents.dtype) == ((0, 16), torch.float16)
        assert (batch.grid.shape, batch.grid.dtype) == ((0, 3), torch.int32)
        assert (batch.text.shape, batch.text.dtype) == ((0, 6), torch.bfloat16)
        for offsets in (batch.cu_seqlens, batch.cu_text):
            assert (offsets.tolist(), offsets.dtype) == ([0], torch.int32)
        assert batch.captions == ()


def test_a_clip_without_captions_is_loaded_with_an_empty_span(write: Write, make_clip: Any, tmp_path: Path) -> None:
    write(str(tmp_path), [make_clip(0, captions=0), make_clip(1, size=(1, 2, 2), captions=2)])
    for batch in epoch_of(loaders(str(tmp_path), 1)):
        spans = dict(zip(batch.clip_ids, batch.cu_text.diff().tolist(), strict=True))
        assert spans[f"{0:032x}"] == 0
        assert spans[f"{1:032x}"] > 0


def test_a_damaged_row_stops_training_with_the_name_of_its_shard(corpus: str, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "damaged")
    shard = sorted((tmp_path / "damaged").glob("*.tar"))[1]
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=shard.name):
        epoch_of(loaders(str(tmp_path / "damaged"), 1))


def test_a_missing_index_is_found_before_the_first_step(corpus: str, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "damaged")
    index = min((tmp_path / "damaged").glob("*.index.json"))
    index.unlink()
    with pytest.raises(ShardError, match=f"{index.name} is missing"):
        ShardLoader(str(tmp_path / "damaged"), global_batch=1)


def test_a_corpus_without_rows_is_refused(write: Write, tmp_path: Path) -> None:
    write(str(tmp_path), [])
    with pytest.raises(ShardError, match=f"{tmp_path} has no rows"):
        ShardLoader(str(tmp_path), global_batch=1)


def test_nothing_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no packed corpus"):
        ShardLoader(str(tmp_path), global_batch=1)
