"""Trains the demo's tiny LLaVA-OneVision captioner on the drawn world, and says how good it is.

The picture tower of `tower.py` is frozen at first, so that its features are made once a clip; projector and language model
learn from them. Both prompts are learned in one pass over a clip: they are branches behind the same pictures, blind to each
other. Tokens of attributes weigh more than the words around them, those of motions most: motion is what takes long.

    python -m demo.learning.tower runs/tower
    python -m demo.learning.train_captioner train demo/weights/captioner --tower runs/tower
    python -m demo.learning.train_captioner evaluate demo/weights/captioner --seed 7

Legend: B clips of a batch, F frames, P patches of a frame, E width of the tower, S tokens of a row, D width of the language
model, V vocabulary.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from demo.figures import attributes_of
from demo.learning.course import Course, follow, spread
from demo.learning.examples import ATTRIBUTES, FRAMES, Example, Wear, classes, draw_example, draw_shot, examples
from demo.learning.reconstruct import reconstructions
from demo.learning.tower import CONFIG as TOWER
from demo.learning.tower import PATCHES, SYMMETRY, hidden_states, normalised, trained_vision
from demo.scenes import COLOURS, SHAPES, Scene, dense_caption, draw_scene, short_caption
from demo.tiny_models import CORPUS, captioner_config, captioner_processor, save_captioner
from recaption import Caption, Captioner, ClipFrames, Prompt, load_captioner
from training.precision import has_bf16, products

SHORT = Prompt(id="short", text="Describe this video in one short sentence.", max_new_tokens=40)
DENSE = Prompt(id="dense", text="Describe this video in detail: subjects, actions, setting and camera.", max_new_tokens=96)
ANSWERS = {SHORT: short_caption, DENSE: dense_caption}
VOCABULARY = 700
LAYERS, MLP = 4, 256  # of the language model
TRACKED = 2  # layers after which the end of a frame must know where the main shape is and how it moved
HEARD = 3  # layers after which the end of the pictures must know the attributes; the last layer reads it from there
CROWDING = 0.4  # share of lone shapes that are drawn again: several shapes are harder, and rarer
WEAR = Wear(overlay=0.04, mark=0.04, small=0.15, damage=0.25)
GROUNDS = ("gray", "sand", "navy", "sky", "sunset", "grass", "striped", "stripes", "checkered", "checkerboard")
WEIGHTS = {
    **dict.fromkeys((*SHAPES, *COLOURS, *GROUNDS), 1.0),
    **dict.fromkeys(
        ("left", "right", "up", "down", "moves", "in", "grows", "shrinks", "spins", "bounces", "stays", "still"), 2.5
    ),
    **dict.fromkeys(("large", "small", "slowly", "fast", "A", "The", "."), 0.7),
    "circle": 2.0,
}
OTHER_WORDS = 0.2
FRAME_TOKENS = PATCHES**2 // 4
POSE, TRACK = 8, 14  # numbers that say where the main shape is in a frame, and those with what changed
CODED, CODED_SHARE = 100, 0.2  # reconstructions in stock, and how much of a batch they are
CODED_EVERY = 4  # batches after which one of them is made anew: that takes as long as drawing twenty clips
TRACK_WEIGHTS = 0.3, 0.6  # of where the main shape is and of how that changes from frame to frame, in the loss
SEEN_SHAPE = 0.2  # weight of what it is, frame by frame


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip as the learner is given it.

    Attributes:
        features: what the frozen layers of the tower make of its frames [F, P, E].
        scene: what it shows.
        track: where the main shape is in every frame, and how that changed; see `track`.
    """

    features: Tensor
    scene: Scene
    track: Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Tokens of a batch behind the pictures, laid out as one row a clip: the end of the shared prompt, then every branch.

    Attributes:
        tokens: [B, S].
        targets: the token that each position must predict [B, S], -100 where none.
        places: position of every token in its own conversation [B, S].
        branches: 0 for what is shared, then 1, 2, ... [B, S]; -1 for padding.
    """

    tokens: Tensor
    targets: Tensor
    places: Tensor
    branches: Tensor


class Learner(nn.Module):
    """A captioner with heads that read the attributes where the pictures end, and the main shape's track where frames end.

    Its tower is frozen, but for its last layer when it goes on from a captioner that is trained already.
    """

    def __init__(self, vision: nn.Module | None = None, begun: Path | None = None) -> None:
        super().__init__()
        self.processor = captioner_processor(VOCABULARY, texts())
        config = captioner_config(self.processor.tokenizer, TOWER)
        config.text_config.num_hidden_layers, config.text_config.intermediate_size = LAYERS, MLP
        config.text_config.layer_types = config.text_config.layer_types[:1] * LAYERS
        self.captioner = LlavaOnevisionForConditionalGeneration(config)
        if has_bf16("cpu"):
            self.captioner.set_attn_implementation("eager")  # the fused kernel's backward pass is slow in it
        spread(self.captioner)
        nn.init.normal_(self.captioner.get_input_embeddings().weight, std=0.2)
        if vision is not None:
            self.captioner.model.vision_tower.load_state_dict(vision.state_dict())
        if begun is not None:
            self._take_over(begun)
        self.captioner.model.vision_tower.requires_grad_(False).eval()
        self.tuned = [] if begun is None else list(self.captioner.model.vision_tower.encoder.layers[-1:])
        for layer in self.tuned:
            layer.requires_grad_(True)
        width = config.text_config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
        self.heads["track"], self.heads["seen shape"] = nn.Linear(width, TRACK), nn.Linear(width, len(SHAPES))
        for head in self.heads.values():
            nn.init.zeros_(head.get_parameter("weight"))  # what is random in a head that comes new would shake a trained model
        self.layout = Layout(self.processor)
        self.weights = token_weights(self.processor.tokenizer)

    def _take_over(self, folder: Path) -> None:
        """Take the weights of an exported captioner, whose tokens must be the same."""
        begun = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        if PreTrainedTokenizerFast.from_pretrained(folder).get_vocab() != self.processor.tokenizer.get_vocab():
            raise ValueError(f"{folder} was trained with another vocabulary")
        self.captioner.load_state_dict(begun.state_dict())

    @torch.no_grad()
    def features(self, frames: NDArray[np.uint8]) -> Tensor:
        """Return what the frozen layers of the tower make of frames [F, Y, X, 3]: float16 [F, P, E]."""
        with products("auto", "cpu"):
            return hidden_states(self.captioner.model.vision_tower, normalised(frames), ahead=len(self.tuned)).half()

    def seen(self, features: Tensor) -> Tensor:
        """Turn features [B, F, P, E] into the tokens that the language model sees [B, F·P/4 + 1, D]."""
        model = self.captioner.model
        states = features.flatten(0, 1).float()
        for layer in self.tuned:
            states = layer(states, attention_mask=None)
        pooled = model.apply_pooling(model.multi_modal_projector(states))
        end = model.image_newline[None, None].expand(len(features), 1, -1)
        return torch.cat([pooled.reshape(len(features), -1, pooled.shape[-1]), end], dim=1)

    def forward(self, features: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [B, S, V] of the tokens behind the pictures, and the states where pictures and frames end.

        The former is [B, D] after `HEARD` layers, the latter are [B, F, D] after `TRACKED`.
        """
        model, layout = self.captioner.model, self.layout
        words = model.get_input_embeddings()
        before = words(layout.before[None].expand(len(features), -1))
        seen = self.seen(features)
        ahead = before.shape[1] + seen.shape[1]
        embedded = torch.cat([before, seen, words(rows.tokens)], dim=1)
        places = torch.cat([torch.arange(ahead).expand(len(features), -1), ahead + rows.places], dim=1)
        out = model.language_model(
            inputs_embeds=embedded,
            attention_mask=_mask(rows.branches, ahead, embedded.dtype),
            position_ids=places,
            use_cache=False,
            output_hidden_states=True,
        )
        heard = out.hidden_states[HEARD][:, ahead - 1]
        ends = before.shape[1] + FRAME_TOKENS * torch.arange(1, features.shape[1] + 1) - 1
        tracked = out.hidden_states[TRACKED][:, ends]
        return self.captioner.lm_head(out.last_hidden_state[:, ahead:]).float(), heard.float(), tracked.float()


class Layout:
    """Where the tokens of a conversation lie around the pictures, as the processor writes it for inference."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer: PreTrainedTokenizerFast = processor.tokenizer
        asked = [_asked(processor, prompt.text) for prompt in ANSWERS]
        video = processor.tokenizer.convert_tokens_to_ids("<video>")
        first, end = asked[0].index(video), len(asked[0]) - asked[0][::-1].index(video)
        tails = [tokens[end:] for tokens in asked]
        same = next(n for n, pair in enumerate(zip(*tails, strict=False)) if len(set(pair)) > 1)
        self.before, self.video_tokens = torch.tensor(asked[0][:first]), end - first
        self.shared, self.questions = tails[0][:same], [tail[same:] for tail in tails]

    def rows(self, answers: Sequence[Sequence[str]]) -> Rows:
        """Lay out the answers of a batch, one for every prompt a clip."""
        pieces = [self._row(of_clip) for of_clip in answers]
        most = max(len(piece[0]) for piece in pieces)
        filled = [
            [column + [fill] * (most - len(column)) for column, fill in zip(piece, (0, -100, 0, -1), strict=True)]
            for piece in pieces
        ]
        tokens, targets, places, branches = (torch.tensor([row[n] for row in filled]) for n in range(4))
        return Rows(tokens=tokens, targets=targets, places=places, branches=branches)

    def _row(self, answers: Sequence[str]) -> tuple[list[int], list[int], list[int], list[int]]:
        tokens, targets = list(self.shared), [-100] * len(self.shared)
        places, branches = list(range(len(self.shared))), [0] * len(self.shared)
        for number, (question, answer) in enumerate(zip(self.questions, answers, strict=True)):
            said = [*self.tokenizer(answer)["input_ids"], self.tokenizer.eos_token_id]
            branch = [*question, *said[:-1]]
            tokens += branch
            targets += [-100] * (len(question) - 1) + said
            places += range(len(self.shared), len(self.shared) + len(branch))
            branches += [number + 1] * len(branch)
        return tokens, targets, places, branches


def _asked(processor: Any, text: str) -> list[int]:
    """Return the tokens of a prompt exactly as `recaption.hf` gives them to the model."""
    frames = np.zeros((FRAMES, 64, 64, 3), np.uint8)
    chat = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": text}]}]
    options = {"do_sample_frames": False, "input_data_format": "channels_last"}
    inputs = processor.apply_chat_template(
        [chat], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt", processor_kwargs=options
    )
    tokens: list[int] = inputs["input_ids"][0].tolist()
    return tokens


def _mask(branches: Tensor, ahead: int, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores [B, 1, A + S, A + S]: no look ahead, none into another branch or padding."""
    whole = functional.pad(branches, (ahead, 0))  # [B, A + S]: pictures belong to every branch
    seen, sees = whole[:, None, :], whole[:, :, None]
    allowed = ((seen == 0) | (seen == sees)) & torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def texts(seed: int = 0) -> list[str]:
    """Return the texts that the tokenizer learns its merges from."""
    random = np.random.Generator(np.random.Philox(seed))
    scenes = [draw_scene(random, seconds=2.0, aspect=1.0, any_combination=True) for _ in range(1500)]
    asked = [f"user\n{prompt.text}assistant\n" for prompt in ANSWERS] * 100
    return [CORPUS, *asked, *(answer(scene) for scene in scenes for answer in ANSWERS.values())]


def token_weights(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return how much it counts to predict each token [V]."""
    weights = [WEIGHTS.get(tokenizer.decode([token]).strip(), OTHER_WORDS) for token in range(len(tokenizer))]
    return torch.tensor(weights)


class Stock:
    """Features and scenes of drawn clips, renewed a little with every batch.

    Args:
        learner: its tower makes the features.
        random: gives every choice.
        size: clips in stock, 100 KB each.
        fresh: clips drawn anew for every batch.
        coded: clips without end that take long to make, such as reconstructions: a share of every batch.
    """

    def __init__(
        self,
        learner: Learner,
        random: np.random.Generator,
        *,
        size: int,
        fresh: int,
        coded: Iterator[Example] | None = None,
    ) -> None:
        self._learner, self._random, self._fresh, self._oldest = learner, random, fresh, 0
        self._stock = [self._drawn() for _ in range(size)]
        self._source, self._batches = coded or iter(()), 0
        self._coded = [seen_clip(learner, example) for example in islice(self._source, CODED)]

    def batch(self, size: int) -> list[Clip]:
        """Take clips chosen at random, all with one number of frames."""
        for _ in range(self._fresh):
            self._stock[self._oldest] = self._drawn()
            self._oldest = (self._oldest + 1) % len(self._stock)
        self._batches += 1
        if self._coded and self._batches % CODED_EVERY == 0:
            self._coded = [*self._coded[1:], seen_clip(self._learner, next(self._source))]
        count = len(self._stock[self._random.integers(len(self._stock))].features)
        alike, coded = (_of_length(clips, count) for clips in (self._stock, self._coded))
        from_coded = round(size * CODED_SHARE) if coded else 0
        chosen = [alike[n] for n in self._random.integers(len(alike), size=size - from_coded)]
        return chosen + [coded[n] for n in self._random.integers(max(1, len(coded)), size=from_coded)]

    def _drawn(self) -> Clip:
        shot = draw_shot(self._random)
        if len(shot.scene.shapes) == 1 and self._random.random() < CROWDING:
            shot = draw_shot(self._random)
        return seen_clip(self._learner, draw_example(self._random, WEAR, shot))


def seen_clip(learner: Learner, example: Example) -> Clip:
    """Let a learner's tower look at a clip."""
    return Clip(features=learner.features(example.frames), scene=example.scene, track=track(example))


def track(example: Example) -> Tensor:
    """Say where the main shape of a clip is in each frame, and what changed since the frame before [F, 14].

    Sines and cosines of the place, since what leaves on one side comes in on the other, radii, and sine and cosine of the
    angle, alike for angles that look alike; then how far it went, how much it grew, and sine and cosine of how far it turned.
    Scaled to about one; the first frame's changes are zero but for the cosine.
    """
    place, radius = example.poses[:, 0, :2], 4 * example.poses[:, 0, 2:4]  # [F, 2] each
    angle = SYMMETRY[example.scene.main.shape] * example.poses[:, 0, 4:]  # [F, 1]
    went, grew, turned = (np.diff(values, axis=0, prepend=values[:1]) for values in (place, radius, angle))
    went = (went + 0.5) % 1 - 0.5
    around = 2 * np.pi * place
    columns = [np.sin(around), np.cos(around), radius, np.sin(angle), np.cos(angle)]
    columns += [8 * went, 5 * grew, np.sin(turned), np.cos(turned)]
    return torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32))


def _features(clips: Sequence[Clip]) -> Tensor:
    """Put the features of clips together, in fp32: autocast on a CPU takes nothing in fp16, which they are kept in."""
    return torch.stack([clip.features.float() for clip in clips])


def _of_length(clips: Sequence[Clip], count: int) -> list[Clip]:
    return [clip for clip in clips if len(clip.features) == count]


def loss_of(learner: Learner, clips: Sequence[Clip]) -> Tensor:
    """Return how badly a learner captions clips, by both prompts."""
    scenes = [clip.scene for clip in clips]
    rows = learner.layout.rows([[answer(scene) for answer in ANSWERS.values()] for scene in scenes])
    logits, heard, tracked = learner(_features(clips), rows)
    spoken = rows.targets != -100
    weights = learner.weights[rows.targets[spoken]]
    loss = (functional.cross_entropy(logits[spoken], rows.targets[spoken], reduction="none") * weights).sum() / weights.sum()
    labels = torch.tensor([list(classes(scene).values()) for scene in scenes])
    for number, name in enumerate(ATTRIBUTES):
        share = {"motion": 0.5, "shape": 0.2}.get(name, 0.1)
        loss = loss + share * functional.cross_entropy(learner.heads[name](heard), labels[:, number])
    shapes = labels[:, :1].expand(-1, tracked.shape[1])  # [B, F]
    loss = loss + SEEN_SHAPE * functional.cross_entropy(learner.heads["seen shape"](tracked).transpose(1, 2), shapes)
    return loss + _track_loss(learner.heads["track"](tracked), torch.stack([clip.track for clip in clips]))


def _track_loss(said: Tensor, true: Tensor) -> Tensor:
    """Return how badly main shapes are tracked; said and true are [B, F, 14]."""
    errors = (said - true).square()
    return TRACK_WEIGHTS[0] * errors[..., :POSE].mean() + TRACK_WEIGHTS[1] * errors[..., POSE:].mean()


def train(
    tower: Path | None,
    folder: Path,
    *,
    cpu_s: float,
    state: Path,
    begin: Path | None = None,
    codec: Path | None = None,
    seed: int = 0,
    stock: int = 800,
    batch: int = 32,
) -> None:
    """Train for so many CPU seconds, and export a transformers folder again and again.

    Args:
        tower: folder of a run of `demo.learning.tower`; None leaves the tower random.
        folder: where the model goes, replaced in one rename, at every line of the log.
        cpu_s: CPU seconds.
        state: folder of the checkpoint; a run that was cut off goes on from it.
        begin: a folder that such a run wrote; its model learns on, at a lower rate and with the tower's last layer.
        codec: a video autoencoder; a fifth of the clips are then its reconstructions.
        seed: of weights and clips.
        stock: clips in stock.
        batch: clips of a step.
    """
    torch.manual_seed(seed)
    learner = Learner(None if tower is None else trained_vision(tower), begin)
    random = np.random.Generator(np.random.Philox(seed + 2))
    coded = reconstructions(codec, seed=seed) if codec else None
    clips = Stock(learner, random, size=stock, fresh=6, coded=coded)
    course = Course(folder=state, cpu_s=cpu_s, muon_lr=1.5e-2 if begin is None else 8e-3, average=0.99, report_s=120)
    test = [seen_clip(learner, example) for example in examples(1_000_003, 192, Wear())]
    follow(course, learner, lambda: loss_of(learner, clips.batch(batch)), partial(_progress, learner, test, folder))


def export(learner: Learner, folder: Path) -> None:
    """Write the transformers folder beside its place and rename it; a training.md that is there stays."""
    draft = folder.with_name(f".{folder.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_captioner(draft, deepcopy(learner.captioner), learner.processor)  # saving halves the precision of what it saves
    if (folder / "training.md").exists():
        shutil.copy(folder / "training.md", draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def mix(first: Path, second: Path, folder: Path) -> None:
    """Write the mean of the weights of two captioners of which one went on from the other; it is better than both.

    Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), section 3.
    """
    learner, other = Learner(begun=first), Learner(begun=second)
    with torch.no_grad():
        for weight, added in zip(learner.captioner.parameters(), other.captioner.parameters(), strict=True):
            weight.lerp_(added, 0.5)
    export(learner, folder)


def _progress(learner: Learner, test: Sequence[Clip], folder: Path) -> str:
    """Export, and say how often the heads behind the pictures are right, and short captions where all before is given."""
    export(learner, folder)
    counts = sorted({len(clip.features) for clip in test})
    right = torch.cat([_right(learner, _of_length(test, count)) for count in counts])
    shares = zip((*ATTRIBUTES, "| short caption"), right.float().mean(dim=0).tolist(), strict=True)
    return " ".join(f"{name} {share:.3f}" for name, share in shares)


def _right(learner: Learner, clips: Sequence[Clip]) -> Tensor:
    """Tell for clips of one number of frames whether each head is right [B, 6], and all words of the short caption [B, 1]."""
    scenes = [clip.scene for clip in clips]
    rows = learner.layout.rows([[answer(scene) for answer in ANSWERS.values()] for scene in scenes])
    with products("auto", "cpu"):
        logits, heard, _ = learner(_features(clips), rows)
    labels = torch.tensor([list(classes(scene).values()) for scene in scenes])
    named = [learner.heads[name](heard).argmax(dim=1) == labels[:, n] for n, name in enumerate(ATTRIBUTES)]
    unspoken = (rows.targets == -100) | (rows.branches != 1)
    said = ((logits.argmax(dim=-1) == rows.targets) | unspoken).all(dim=1)
    return torch.stack([*named, said], dim=1)


def shown(example: Example, clip_id: str) -> ClipFrames:
    """Wrap a clip as the recaption stage does; the models of this module are told no times, so any will do."""
    times_s = tuple(float(time_s) for time_s in np.linspace(0, 2, len(example.frames)))
    return ClipFrames(clip_id=clip_id, frames=example.frames, times_s=times_s, duration_s=2.1)


def evaluate(captioner: Captioner, clips: Sequence[Example]) -> dict[str, Any]:
    """Return the figures of a captioner on clips: attributes named rightly by short captions, and what dense ones get right.

    Returns:
        `short`: shares of clips by attribute, and `all` four; `by_aspect` and `by_shapes`: the four for parts of the clips;
        `confused`: the commonest wrong motions; `dense`: main attributes, speed, all shapes, and exact texts; `flagged`:
        captions of either prompt that a check flags.
    """
    wrapped = [shown(example, str(number)) for number, example in enumerate(clips)]
    answers = {prompt.id: captioner.caption(wrapped, prompt) for prompt in ANSWERS}
    said = {name: [a.text if isinstance(a, Caption) else "" for a in of_prompt] for name, of_prompt in answers.items()}
    flagged = sum(not isinstance(a, Caption) or bool(a.flags) for of_prompt in answers.values() for a in of_prompt)
    truths = [_truth(example) for example in clips]
    named = [attributes_of(text) for text in said["short"]]
    right = np.array([[n.get(name) == t[name] for name in truths[0]] for n, t in zip(named, truths, strict=True)])
    missed = [(t["motion"], n.get("motion", "?")) for n, t in zip(named, truths, strict=True) if n.get("motion") != t["motion"]]
    dense = [text == dense_caption(example.scene) for text, example in zip(said["dense"], clips, strict=True)]
    return {
        "clips": len(clips),
        "short": _shares(right, list(truths[0])),
        "by_aspect": _parts(right, [f"{example.scene.aspect:.2f}" for example in clips], list(truths[0])),
        "by_shapes": _parts(right, [str(len(example.scene.shapes)) for example in clips], list(truths[0])),
        "confused": {f"{a} as {b}": missed.count((a, b)) for a, b in sorted(set(missed), key=missed.count, reverse=True)[:8]},
        "dense": {"exact": _share(dense), **_dense(said["dense"], clips)},
        "flagged": flagged,
    }


def _truth(example: Example) -> dict[str, str]:
    main = example.scene.main
    return {"shape": main.shape, "colour": main.colour, "motion": main.motion, "background": example.scene.background}


def _dense(said: Sequence[str], clips: Sequence[Example]) -> dict[str, float]:
    """Return the shares of dense captions whose sentences are right: main subject but for speed, speed, others, ground."""
    pairs = [(text.split(". "), dense_caption(example.scene).split(". ")) for text, example in zip(said, clips, strict=True)]
    return {
        "subject": _share(_less_speed(a[0]) == _less_speed(b[0]) for a, b in pairs),
        "speed": _share(a[0].split()[-1] == b[0].split()[-1] for a, b in pairs),
        "others": _share(sorted(a[1:-1]) == sorted(b[1:-1]) for a, b in pairs),
        "background": _share(a[-1] == b[-1] for a, b in pairs),
    }


def _less_speed(sentence: str) -> str:
    return sentence.removesuffix(" slowly").removesuffix(" fast")


def _parts(right: NDArray[np.bool_], keys: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    return {key: _shares(right[[k == key for k in keys]], names) for key in sorted(set(keys))}


def _shares(right: NDArray[np.bool_], names: Sequence[str]) -> dict[str, float]:
    each = {name: _share(right[:, number].tolist()) for number, name in enumerate(names)}
    return {**each, "all": _share(all(row) for row in right)}


def _share(values: Iterable[Any]) -> float:
    listed = [bool(value) for value in values]
    return round(sum(listed) / max(1, len(listed)), 4)


@click.group()
def main() -> None:
    """Train or judge the demo's captioner."""
    torch.set_num_threads(1)


@main.command("train")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--cpu-s", default=1500.0, show_default=True, help="CPU seconds to train for.")
@click.option(
    "--state", type=click.Path(path_type=Path), default=Path("runs/captioner"), show_default=True, help="Checkpoints."
)
@click.option("--tower", type=click.Path(exists=True, path_type=Path), help="Run of demo.learning.tower to begin with.")
@click.option("--begin", type=click.Path(exists=True, path_type=Path), help="Or a captioner to go on from, its tower included.")
@click.option("--codec", type=click.Path(exists=True, path_type=Path), help="Autoencoder whose reconstructions are shown too.")
def train_command(folder: Path, cpu_s: float, state: Path, tower: Path | None, begin: Path | None, codec: Path | None) -> None:
    """Train a captioner, and write the model into FOLDER."""
    train(tower, folder, cpu_s=cpu_s, state=state, begin=begin, codec=codec)


@main.command("mix")
@click.argument("first", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("second", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def mix_command(first: Path, second: Path, folder: Path) -> None:
    """Write into FOLDER the mean of the weights of FIRST and of SECOND, which went on from it."""
    mix(first, second, folder)


@main.command("evaluate")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seed", default=7, show_default=True, help="Seed of the clips.")
@click.option("--clips", default=500, show_default=True, help="How many.")
@click.option("--codec", type=click.Path(exists=True, path_type=Path), help="Judge this autoencoder's reconstructions instead.")
def evaluate_command(folder: Path, seed: int, clips: int, codec: Path | None) -> None:
    """Print the figures of the model in FOLDER on clips of a seed."""
    captioner = load_captioner(str(folder.resolve()), revision=None, device="cpu", dtype="float32", batch=16)
    of_seed = islice(reconstructions(codec, seed=10**6 + seed), clips) if codec else examples(10**6 + seed, clips, Wear())
    click.echo(json.dumps(evaluate(captioner, list(of_seed)), indent=1))


if __name__ == "__main__":
    main()
