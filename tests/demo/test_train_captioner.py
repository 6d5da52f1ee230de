"""A few steps of training fit captions better, through the same tokens as inference, and an export loads and answers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.learning.course import Course, follow
from demo.learning.examples import Wear, examples
from demo.learning.tower import hidden_states, normalised
from demo.learning.train_captioner import ANSWERS, DENSE, SHORT, Clip, Learner, evaluate, export, loss_of, seen_clip, shown
from demo.scenes import dense_caption, short_caption
from recaption import load_captioner


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from more threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loss(learner: Learner, clips: list[Clip]) -> float:
    with torch.inference_mode():
        return float(loss_of(learner, clips))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learner, float, float]:
    """Train for some steps; return the folder, what was trained, and the loss of the same clips before and after."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    learner = Learner()
    clips = [seen_clip(learner, example) for example in examples(1, 20, Wear())]
    clips = [clip for clip in clips if len(clip.features) == 8]
    before = loss(learner, clips)
    follow(Course(folder=folder / "state", steps=25, muon_lr=1e-2), learner, lambda: loss_of(learner, clips))
    after = loss(learner, clips)
    export(learner, folder / "captioner")
    return folder / "captioner", learner, before, after


def test_training_lowers_the_loss(exported: tuple[Path, Learner, float, float]) -> None:
    _, _, before, after = exported
    assert after < 0.7 * before


def test_answers_fit_the_tokens_that_the_demo_allows() -> None:
    tokenizer = Learner().layout.tokenizer
    scenes = [example.scene for example in examples(2, 200, Wear())]
    for prompt, answer in ANSWERS.items():
        assert max(len(tokenizer(answer(scene))["input_ids"]) + 1 for scene in scenes) <= prompt.max_new_tokens


@pytest.mark.parametrize(("branch", "prompt", "answer"), [(1, SHORT, short_caption), (2, DENSE, dense_caption)])
def test_a_branch_gives_the_logits_of_the_whole_conversation(
    exported: tuple[Path, Learner, float, float], branch: int, prompt: object, answer: object
) -> None:
    folder, learner, _, _ = exported
    captioner = load_captioner(str(folder), revision=None, device="cpu", dtype="float32", batch=1)
    example = next(examples(3, 1, Wear()))
    inputs = captioner._inputs([shown(example, "0")], prompt.text)
    said = learner.layout.tokenizer(answer(example.scene))["input_ids"]
    whole = torch.cat([inputs["input_ids"], torch.tensor([said])], dim=1)
    pixels = inputs["pixel_values_videos"]
    learner.eval()
    with torch.inference_mode():
        model = captioner._model
        ours = model(input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values_videos=pixels).logits[0]
        rows = learner.layout.rows([[text(example.scene) for text in ANSWERS.values()]])
        features = hidden_states(learner.captioner.model.vision_tower, normalised(example.frames))
        logits, _, _ = learner(features[None], rows)
    trained = logits[0][(rows.branches[0] == branch) & (rows.targets[0] != -100)]
    assert (ours[inputs["input_ids"].shape[1] - 1 :] - trained).abs().max() < 0.05  # half precision lies between


def test_an_export_loads_through_the_public_door_and_answers(exported: tuple[Path, Learner, float, float]) -> None:
    folder = exported[0]
    captioner = load_captioner(str(folder), revision=None, device="cpu", dtype="float32", batch=4)
    figures = evaluate(captioner, list(examples(4, 4, Wear())))
    assert figures["clips"] == 4
    assert set(figures["short"]) == {"shape", "colour", "motion", "background", "all"}
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2.4e6


def test_only_projector_and_language_model_are_trained(exported: tuple[Path, Learner, float, float]) -> None:
    learner = exported[1]
    torch.manual_seed(0)
    fresh = Learner()
    vision = zip(
        learner.captioner.model.vision_tower.state_dict().values(),
        fresh.captioner.model.vision_tower.state_dict().values(),
        strict=True,
    )
    assert all(np.allclose(a.half(), b.half()) for a, b in vision)
