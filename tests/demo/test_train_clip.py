"""A few steps of training fit titles better, and what is exported loads and answers as any open_clip model does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.learning.course import Course, follow
from demo.learning.examples import ATTRIBUTES, Reservoir, Wear, classes, examples, title, wholly_wrong, with_wrong
from demo.learning.tower import SIDE_PX, Tower, hidden_states, normalised
from demo.learning.tower import loss_of as tower_loss
from demo.learning.train_clip import CONTEXT, PROBES, Learner, _fits, _said, evaluate, export, loss_of, start_from, text_probe
from demo.scenes import dense_caption, short_caption
from packing.clip import LOCAL, load_clip

WORN = Wear(overlay=0.3, mark=0.3, small=0.2, damage=0.5)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from more threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_clips_of_a_seed_are_the_same_twice_and_have_the_models_size() -> None:
    first, second = (list(examples(3, 6, WORN)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.frames.shape[1:] == (SIDE_PX, SIDE_PX, 3)
        assert 4 <= len(one.frames) <= 8
        assert len(one.poses) == len(one.frames)
        assert np.array_equal(one.frames, other.frames)
        assert one.scene == other.scene


def test_the_main_shape_is_where_the_pose_says() -> None:
    for example in examples(4, 20, Wear()):
        across, down = example.poses[:, 0, 0], example.poses[:, 0, 1]
        for frame, x, y in zip(example.frames, across, down, strict=True):
            pixel = frame[min(63, int(y % 1 * 64)), min(63, int(x % 1 * 64))].astype(int)
            far = np.abs(pixel - example.scene.main.rgb).max()
            # A circle's notch comes close to its centre; everything else is filled there.
            assert far < 60 or example.scene.main.shape == "circle"


def test_a_title_says_only_what_is_true_and_names_it() -> None:
    random = drawn(5)
    for example in examples(5, 40, Wear()):
        text, said = title(example.scene, random)
        truth = classes(example.scene)
        for name, value in said.items():
            assert value == truth[name]
            if name in ("shape", "colour"):
                assert ATTRIBUTES[name][value] in text


def test_a_wrong_title_differs_in_what_it_should() -> None:
    random = drawn(6)
    for example in examples(6, 20, Wear()):
        truth, nearly = classes(example.scene), classes(with_wrong(example.scene, "shape", random))
        assert {name for name in truth if truth[name] != nearly[name]} == {"shape"}
        other = classes(wholly_wrong(example.scene, random))
        assert {name for name in truth if truth[name] != other[name]} == {"shape", "colour", "background"}


def test_titles_fit_frames_that_show_what_they_say() -> None:
    labels = torch.tensor([[0, 1, 2, 3, 0, 0], [0, 1, 3, 3, 0, 0]])
    first, second = {"shape": 0, "colour": 1, "background": 2, "motion": 9}, {"shape": 0, "colour": 1}
    other = {"shape": 4, "colour": 1, "background": 2}
    said = torch.stack([_said(told) for told in ([first], [second], [other], [other, first])])
    assert _fits(labels, said).tolist() == [[True, True, False, True], [False, True, False, False]]


def test_the_longest_dense_caption_fits_the_context() -> None:
    tokenizer = Learner().tokenizer
    lengths = [len(tokenizer(dense_caption(example.scene))["input_ids"]) for example in examples(7, 200, Wear())]
    assert max(lengths) <= CONTEXT
    assert tokenizer.decode(tokenizer("Ein großer Stern")["input_ids"], skip_special_tokens=True) == "Ein großer Stern"


def test_a_started_picture_tower_sees_what_the_other_saw() -> None:
    torch.manual_seed(0)
    tower, learner = Tower(), Learner()
    start_from(learner.clip, tower.vision)
    pixels = normalised(next(examples(8, 1, Wear())).frames)
    with torch.inference_mode():
        theirs = hidden_states(tower.vision, pixels).mean(dim=1)
        ours = learner.clip.visual.transformer(learner.clip.visual._embeds(pixels))[:, 1:].mean(dim=1)
    assert (theirs - ours).abs().max() < 0.1 * theirs.abs().max()  # the class token is one of 65 to look at


def test_training_lowers_the_towers_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower, reservoir = Tower(), Reservoir(drawn(9), WORN, size=40, fresh=0)
    frames = reservoir.batch(32)
    before = float(tower_loss(tower, frames).detach())
    follow(Course(folder=tmp_path, steps=12), tower, lambda: tower_loss(tower, frames))
    assert float(tower_loss(tower, frames).detach()) < 0.8 * before


def test_a_run_that_was_cut_off_goes_on_with_its_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frames = Reservoir(drawn(10), WORN, size=20, fresh=0).batch(8)
    tower = Tower()
    follow(Course(folder=tmp_path, steps=3), tower, lambda: tower_loss(tower, frames))
    again = Tower()
    assert follow(Course(folder=tmp_path, steps=3), again, lambda: tower_loss(again, frames)) == 3
    assert all(torch.equal(a, b) for a, b in zip(tower.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, float]:
    """Train for some steps; return the folder, and the loss of the same batch before and after."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    learner, frames = Learner(), Reservoir(drawn(11), WORN, size=30, fresh=0).batch(24)
    before = float(loss_of(learner, frames, drawn(12)).detach())
    follow(Course(folder=folder / "state", steps=12), learner, lambda: loss_of(learner, frames, drawn(12)))
    after = float(loss_of(learner, frames, drawn(12)).detach())
    export(learner, folder / "clip")
    return folder / "clip", before, after


def test_training_lowers_the_loss(exported: tuple[Path, float, float]) -> None:
    _, before, after = exported
    assert after < 0.8 * before


def test_an_export_loads_through_the_public_door_and_answers(exported: tuple[Path, float, float]) -> None:
    folder = exported[0]
    clip, clips = load_clip(LOCAL + str(folder)), list(examples(13, 12, WORN))
    figures = evaluate(clip, clips)
    assert 0 <= figures["title_auc"] <= 1
    assert set(figures["probes"]) == set(PROBES)
    assert set(text_probe(clip, count=120)) == set(ATTRIBUTES)
    states = clip.text_states(short_caption(clips[0].scene))
    assert states.shape[1] == clip.text_width
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1.5e6
