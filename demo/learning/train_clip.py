"""Trains the demo's tiny open_clip model on the drawn world, and says how good it is.

It starts from the picture tower of `tower.py`, because contrast alone does not find shapes at this size. A title is right
when shape, colour and background are: single frames do not show motion, so a second loss keeps motion, speed and size
readable in the text tower's states, which condition the DiT. Cost: some minutes of one core.

    python -m demo.learning.tower runs/tower
    python -m demo.learning.train_clip train runs/tower demo/weights/clip
    python -m demo.learning.train_clip evaluate demo/weights/clip --seed 7

Legend: B frames of a batch, J texts, D joint width, m text tokens, E width of the text tower.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo.figures import auc
from demo.learning.course import Course, follow
from demo.learning.examples import (
    ATTRIBUTES,
    Example,
    Frames,
    Reservoir,
    Wear,
    classes,
    examples,
    title,
    wholly_wrong,
    with_wrong,
)
from demo.learning.reconstruct import reconstructions
from demo.learning.tower import SEEN, normalised, trained_vision
from demo.scenes import Scene, dense_caption, draw_scene, short_caption
from demo.tiny_models import CLIP_CONFIG, CORPUS, clip_config, clip_tokenizer, save_clip
from packing.clip import LOCAL, Clip, load_clip
from pipeline.stages.score import probe_score

PROBES = {"text_overlay": "a picture with large words across it", "watermark": "a picture with a small watermark in a corner"}
CLEAN = "a clean picture"
CONTEXT = 64  # tokens; a dense caption of three shapes has about 40
SHORT_TEXT = 16  # tokens
CONFIG = {
    **CLIP_CONFIG,
    "vision_cfg": {**CLIP_CONFIG["vision_cfg"], "no_ln_pre": True, "final_ln_after_pool": True},
    "text_cfg": {**CLIP_CONFIG["text_cfg"], "context_length": CONTEXT},
}
VOCABULARY = 640
WEAR = Wear(overlay=0.12, mark=0.12, small=0.15, damage=0.25)
UNSAID = -100  # class of an attribute that a text does not name
WRONG = ("shape", "shape", "colour", "background")  # what a nearly right title has wrong, shapes being hardest
MOST_SCENES = 5  # that one title tells of, where a video has several
NOTHING = -200  # class of every attribute of a sentence that is not there: fits no frame


class Learner(nn.Module):
    """A CLIP model with what teaches it: attribute heads on both towers, and an absolute scale of cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer(VOCABULARY, texts())
        self.config = clip_config(CONFIG, self.tokenizer)
        self.clip = open_clip.CLIP(**self.config)
        nn.init.normal_(self.clip.token_embedding.weight, std=0.3)
        nn.init.normal_(self.clip.positional_embedding, std=0.1)
        joint, width = self.config["embed_dim"], self.config["text_cfg"]["width"]
        self.picture_heads = nn.ModuleDict({name: nn.Linear(joint, len(ATTRIBUTES[name])) for name in SEEN})
        self.text_heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
        # Of the logit of "this title is right": scale and offset, against nearly right titles and against wholly wrong ones.
        self.level = nn.Parameter(torch.tensor([[10.0, 6.0], [10.0, 3.0]]))

    def pictured(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Return features [B, D] of pictures uint8 [B, Y, X, 3]; a tower that is not trained costs only its forward pass."""
        visual, pixels = self.clip.visual, normalised(pictures)
        if visual.conv1.weight.requires_grad:
            features: Tensor = visual(pixels)
            return features
        with torch.no_grad():
            mean = visual.transformer(visual._embeds(pixels))[:, 1:].mean(dim=1)
        pooled: Tensor = visual.ln_post(mean) @ visual.proj
        return pooled

    def freeze(self, frozen: bool) -> None:
        """Take the picture tower up to its last norm out of training, or put it back."""
        kept = ("ln_post", "proj")
        for name, parameter in self.clip.visual.named_parameters():
            parameter.requires_grad_(not frozen or name.split(".")[0] in kept)

    def encode_texts(self, lines: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features [J, D], and states of the text tower [J, 2, E]: at the end of text, and averaged over the text.

        Short and long texts go separately: padded to the longest, a batch would be half padding.
        """
        rows = self.tokenizer(list(lines), truncation=True, max_length=CONTEXT)["input_ids"]
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        cut = sum(len(row) <= SHORT_TEXT for row in rows)
        parts = [self._encode([rows[n] for n in part]) for part in (order[:cut], order[cut:]) if part]
        back = torch.tensor(order).argsort()
        features, states = (torch.cat(pieces)[back] for pieces in zip(*parts, strict=True))
        return features, states

    def _encode(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        clip = self.clip
        padded = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        tokens, inside = padded["input_ids"], padded["attention_mask"]
        length = tokens.shape[1]  # causal: what a shorter context leaves out is padding
        states = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        states = clip.ln_final(clip.transformer(states, attn_mask=clip.attn_mask[:length, :length]))  # [J, m, E]
        end = states[torch.arange(len(states)), inside.sum(dim=1) - 1]
        counted = inside[..., None].to(states.dtype)
        mean = (states * counted).sum(dim=1) / counted.sum(dim=1)
        return end @ clip.text_projection, torch.stack([end, mean], dim=1)


def texts(seed: int = 0) -> list[str]:
    """Return the texts that the tokenizer learns its merges from."""
    random = np.random.Generator(np.random.Philox(seed))
    scenes = [draw_scene(random, seconds=2.0, aspect=1.0, any_combination=True) for _ in range(1500)]
    worded = [text for scene in scenes for text in (short_caption(scene), dense_caption(scene), title(scene, random)[0])]
    return [CORPUS, *worded, *([*PROBES.values(), CLEAN] * 50)]


def loss_of(learner: Learner, frames: Frames, random: np.random.Generator) -> Tensor:
    """Return how badly a learner fits titles to frames, reads attributes out of both, and finds defects."""
    titles = [_pair(frames.scenes, number, random) for number in range(len(frames.scenes))]
    lines = [pair[side][0] for side in (0, 1) for pair in titles]
    said = torch.stack([pair[side][1] for side in (0, 1) for pair in titles])  # [2B, MOST_SCENES, 6]
    is_single = said[: len(titles), 1, 0] == NOTHING
    flags = torch.from_numpy(frames.flags)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward pass is several times slower on small matrices
        pictured = learner.pictured(frames.pictures)
        written, states = learner.encode_texts([*lines, *PROBES.values(), CLEAN])
    pictured, written = (functional.normalize(f.float(), dim=-1) for f in (pictured, written))
    cosines = pictured @ written[: len(lines)].T  # [B, 2B]
    scale = learner.clip.logit_scale.exp().clamp(max=100)
    labels = torch.from_numpy(frames.labels)
    return (
        _contrast(scale * cosines, _fits(labels, said))
        + _level(learner.level, cosines, is_single)
        + _named(learner, pictured, states.float(), labels, said)
        + 2 * _defects(scale * pictured @ written[len(lines) :].T, flags)
    )


def _pair(scenes: Sequence[Scene], number: int, random: np.random.Generator) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """Word a right and a wrong title of a frame: one scene nearly right, or several of which none is right in anything."""
    scene = scenes[number]
    if random.random() < 0.65:
        nearly = with_wrong(scene, WRONG[random.integers(len(WRONG))], random)
        right, wrong = title(scene, random), title(nearly, random)
        return (right[0], _said([right[1]])), (wrong[0], _said([wrong[1]]))
    count = int(random.integers(1, MOST_SCENES + 1))
    told = [scene, *(scenes[n] for n in random.integers(len(scenes), size=count - 1))]
    of_right = [told[n] for n in random.permutation(count)]
    return _joined(of_right), _joined([wholly_wrong(scene, random) for _ in range(count)])


def _joined(scenes: Sequence[Scene]) -> tuple[str, Tensor]:
    """Word a title of several scenes, as that of a video with cuts."""
    told = [classes(scene) for scene in scenes]
    shown = [{name: of_scene[name] for name in SEEN} for of_scene in told]
    return " ".join(short_caption(scene) for scene in scenes), _said(shown)


def _said(sentences: Sequence[dict[str, int]]) -> Tensor:
    """Return the classes [MOST_SCENES, 6] that the sentences of a title name."""
    rows = [[names.get(name, UNSAID) for name in ATTRIBUTES] for names in sentences]
    return torch.tensor(rows + [[NOTHING] * len(ATTRIBUTES)] * (MOST_SCENES - len(rows)))


def _fits(labels: Tensor, said: Tensor) -> Tensor:
    """Tell which texts fit which frames [B, J]: all that one of their sentences says and a frame can show is true."""
    shown = [list(ATTRIBUTES).index(name) for name in SEEN]
    equal = labels[:, None, None, shown] == said[None, ..., shown]
    return (equal | (said[None, ..., shown] == UNSAID)).all(dim=-1).any(dim=-1)


def _contrast(logits: Tensor, fits: Tensor) -> Tensor:
    """Return the mean cross-entropy of both directions, all fitting partners equal targets; texts that fit none are foils."""
    loss = torch.zeros(())
    for values, targets in ((logits, fits.float()), (logits.T, fits.T.float())):
        wanted = targets.sum(dim=1)
        told = -(values.log_softmax(dim=1) * targets).sum(dim=1) / wanted.clamp(min=1)
        loss = loss + told[wanted > 0].mean() / 2
    return loss


def _level(level: Tensor, cosines: Tensor, is_single: Tensor) -> Tensor:
    """Return how badly one threshold for all clips tells right titles from nearly right ones, another from wholly wrong."""
    right, wrong = cosines.diagonal(), cosines.diagonal(len(cosines))
    scale, offset = level[torch.where(is_single, 0, 1)].unbind(dim=1)
    return (functional.softplus(offset - scale * right) + functional.softplus(scale * wrong - offset)).mean()


def _named(learner: Learner, pictured: Tensor, states: Tensor, labels: Tensor, said: Tensor) -> Tensor:
    loss = torch.zeros(())
    for name, picture_head in learner.picture_heads.items():
        loss = loss + 0.5 * functional.cross_entropy(10 * picture_head(pictured), labels[:, list(ATTRIBUTES).index(name)])
    is_single = said[:, 1, 0] == NOTHING
    for number, name in enumerate(ATTRIBUTES):
        if (said[is_single, 0, number] != UNSAID).any():
            logits = learner.text_heads[name](states[: len(said)])  # [J, 2, n]
            target = torch.where(is_single, said[:, 0, number], UNSAID)[:, None].expand(-1, 2).flatten()
            loss = loss + 0.2 * functional.cross_entropy(logits.flatten(0, 1), target, ignore_index=UNSAID)
    return loss


def _defects(logits: Tensor, flags: Tensor) -> Tensor:
    """Return the cross-entropy of the probes: logits [B, 3] of words, mark and clean against flags [B, 2]."""
    pairs = [functional.cross_entropy(logits[:, [2, number]], flags[:, number].long()) for number in (0, 1)]
    return pairs[0] + pairs[1]


def start_from(clip: Any, vision: Any) -> None:
    """Give a CLIP model the weights of a SigLIP tower; its class token, which SigLIP does not have, starts at zero."""
    visual, state = clip.visual, vision.state_dict()
    with torch.no_grad():
        visual.conv1.weight.copy_(state["embeddings.patch_embedding.weight"])  # its bias goes where the position goes
        places = state["embeddings.position_embedding.weight"] + state["embeddings.patch_embedding.bias"]
        visual.positional_embedding.copy_(torch.cat([torch.zeros_like(places[:1]), places]))
        visual.class_embedding.zero_()
        for number, block in enumerate(visual.transformer.resblocks):
            _copy_block(
                block, {name.split(".", 3)[-1]: v for name, v in state.items() if name.startswith(f"encoder.layers.{number}.")}
            )


def _copy_block(block: Any, state: dict[str, Tensor]) -> None:
    for kind in ("weight", "bias"):
        joined = torch.cat([state[f"self_attn.{part}_proj.{kind}"] for part in "qkv"])
        getattr(block.attn, f"in_proj_{kind}").copy_(joined)
        getattr(block.attn.out_proj, kind).copy_(state[f"self_attn.out_proj.{kind}"])
        for ours, theirs in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
            getattr(getattr(block, ours), kind).copy_(state[f"{theirs}.{kind}"])
        for ours, theirs in (("c_fc", "fc1"), ("c_proj", "fc2")):
            getattr(getattr(block.mlp, ours), kind).copy_(state[f"mlp.{theirs}.{kind}"])


def train(
    tower: Path | None,
    folder: Path,
    *,
    cpu_s: float,
    state: Path,
    text_s: float = 60.0,
    seed: int = 0,
    stock: int = 1000,
) -> None:
    """Train for so many CPU seconds, and export an open_clip folder again and again.

    Args:
        tower: folder of a run of `demo.learning.tower`; None starts from random weights.
        folder: where the model goes, replaced in one rename, at every line of the log.
        cpu_s: CPU seconds.
        state: folder of the checkpoints; a run that was cut off goes on from it.
        text_s: CPU seconds before that, in which only the text tower learns.
        seed: of weights and clips.
        stock: clips in stock.
    """
    torch.manual_seed(seed)
    learner = Learner()
    if tower is not None:
        start_from(learner.clip, trained_vision(tower))
    random = np.random.Generator(np.random.Philox(seed + 1))
    reservoir = Reservoir(random, WEAR, size=stock, fresh=6)
    report = partial(_progress, learner, list(examples(1_000_003, 100, Wear(overlay=0.2, mark=0.2))), folder)
    for name, seconds, rate in (("text", text_s, 2e-2), ("whole", cpu_s, 1e-2)):
        learner.freeze(name == "text")
        course = Course(folder=state / name, cpu_s=seconds, muon_lr=rate, adam_names=("positional_embedding",))
        follow(course, learner, lambda: loss_of(learner, reservoir.batch(128), random), report)


def export(learner: Learner, folder: Path) -> None:
    """Write the open_clip folder beside its place and rename it; a training.md that is there stays."""
    draft = folder.with_name(f".{folder.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_clip(draft, learner.clip, learner.config, learner.tokenizer)
    if (folder / "training.md").exists():
        shutil.copy(folder / "training.md", draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def _progress(learner: Learner, test: Sequence[Example], folder: Path) -> str:
    """Export, and say how well two frames tell right titles from nearly right ones."""
    export(learner, folder)
    rows = []
    for number in (0, -1):
        pictured = learner.clip.encode_image(normalised(np.stack([e.frames[number] for e in test])))
        rows.append(functional.normalize(pictured, dim=-1))
    mean = torch.stack(rows).mean(dim=0)
    random = np.random.Generator(np.random.Philox(5))
    said = [[e.scene for e in test], *([with_wrong(e.scene, name, random) for e in test] for name in SEEN)]
    written = [functional.normalize(learner.encode_texts([short_caption(s) for s in of])[0], dim=-1) for of in said]
    right, *wrong = [(mean * features).sum(dim=1) for features in written]
    return " ".join(f"{name} {auc(right, values):.3f}" for name, values in zip(SEEN, wrong, strict=True))


def evaluate(clip: Clip, clips: Sequence[Example], seed: int = 0) -> dict[str, Any]:
    """Return the figures of a model on clips, asked as the score stage asks.

    Returns:
        `title_auc` against other clips' titles and `by_attribute` against titles with one attribute wrong, `variants_auc` with
        titles as people word them, `threshold` for titles about something else with its precision, recall and margin,
        `threshold_joined` the same for titles of one to five scenes, `probes` with figures at 0.5.
    """
    random = np.random.Generator(np.random.Philox(seed))
    features = [clip.frame_features(example.frames) for example in clips]
    good = [n for n, example in enumerate(clips) if not (example.overlay or example.mark)]
    means = torch.stack([features[n].mean(dim=0) for n in good])
    scenes = [clips[n].scene for n in good]

    def similarity(lines: Iterable[str]) -> NDArray[np.float64]:
        written = torch.stack([clip.text_feature(line) for line in lines])
        return (means * written).sum(dim=1).double().numpy()

    right = similarity(map(short_caption, scenes))
    others = [_another(scenes, n, random) for n in range(len(scenes))]
    wrong = {name: similarity([short_caption(with_wrong(s, name, random)) for s in scenes]) for name in (*SEEN, "motion")}
    elsewhere = similarity([short_caption(wholly_wrong(s, random)) for s in scenes])
    varied = similarity([title(s, random)[0] for s in scenes])
    counts = random.integers(1, MOST_SCENES + 1, size=len(scenes))
    joined = similarity(
        [_joined([s, *random.choice(np.array(scenes), size=k - 1)])[0] for s, k in zip(scenes, counts, strict=True)]
    )
    foreign = similarity([_joined([wholly_wrong(s, random) for _ in range(k)])[0] for s, k in zip(scenes, counts, strict=True)])
    return {
        "clips": len(clips),
        "title_auc": auc(right, similarity(map(short_caption, others))),
        "by_attribute": {name: auc(right, values) for name, values in wrong.items()},
        "variants_auc": auc(varied, similarity([title(s, random)[0] for s in others])),
        "mean_cosine": {
            "right": right.mean(),
            "variants": varied.mean(),
            "joined": joined.mean(),
            "elsewhere": elsewhere.mean(),
        },
        "threshold": _threshold(np.concatenate([right, varied]), elsewhere),
        "threshold_joined": _threshold(joined, foreign),
        "probes": _probes(clip, features, clips),
    }


def _another(scenes: Sequence[Any], number: int, random: np.random.Generator) -> Any:
    """Choose another clip's scene that a single frame can tell from this one's."""
    shown = [(s.main.shape, s.main.colour, s.background) for s in scenes]
    return scenes[random.choice([n for n in range(len(scenes)) if shown[n] != shown[number]])]


def _threshold(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> dict[str, float]:
    """Return the middle of the thresholds at which the worse of precision and recall of finding wrong titles is best."""
    bounds = np.linspace(-0.5, 1, 301)
    found, falsely = (wrong[:, None] < bounds).sum(axis=0), (right[:, None] < bounds).sum(axis=0) * len(wrong) / len(right)
    precision, recall = found / np.maximum(found + falsely, 1e-9), found / len(wrong)
    worse = np.minimum(precision, recall)
    best = np.flatnonzero(worse >= worse.max() - 1e-9)
    middle = best[len(best) // 2]
    return {
        "bound": round(float(bounds[middle]), 3),
        "from": round(float(bounds[best[0]]), 3),
        "to": round(float(bounds[best[-1]]), 3),
        "precision": round(float(precision[middle]), 4),
        "recall": round(float(recall[middle]), 4),
        "right_1_percent": round(float(np.quantile(right, 0.01)), 3),
        "wrong_99_percent": round(float(np.quantile(wrong, 0.99)), 3),
    }


def _probes(clip: Clip, features: Sequence[Tensor], clips: Sequence[Example]) -> dict[str, dict[str, float]]:
    clean = clip.text_feature(CLEAN)[None]
    result = {}
    for name, line in PROBES.items():
        said = np.array([probe_score(f, clip.text_feature(line)[None], clean, clip.logit_scale) > 0.5 for f in features])
        true = np.array([example.overlay if name == "text_overlay" else example.mark for example in clips])
        hits, false = int((said & true).sum()), int((said & ~true).sum())
        shares = {"precision": hits / max(1, hits + false), "recall": hits / max(1, int(true.sum()))}
        result[name] = {share: round(value, 4) for share, value in shares.items()} | {"false_alarms": false}
    return result


def text_probe(clip: Clip, seed: int = 0, count: int = 900) -> dict[str, float]:
    """Return how often a linear map, fitted to two thirds of some titles, reads an attribute from the text states' mean."""
    random = np.random.Generator(np.random.Philox(seed))
    drawn = [title(draw_scene(random, seconds=2.0, aspect=1.0, any_combination=True), random) for _ in range(count)]
    states = torch.stack([clip.text_states(text).mean(dim=0) for text, _ in drawn])
    states = torch.cat([states, torch.ones(count, 1)], dim=1).double()
    result = {}
    for name, values in ATTRIBUTES.items():
        rows = [n for n, (_, said) in enumerate(drawn) if name in said]
        target = torch.tensor([drawn[n][1][name] for n in rows])
        split = len(rows) * 2 // 3
        known = states[rows[:split]]
        wanted = functional.one_hot(target[:split], len(values)).double()
        weights = torch.linalg.solve(known.T @ known + 1e-3 * torch.eye(known.shape[1], dtype=torch.float64), known.T @ wanted)
        said_right = (states[rows[split:]] @ weights).argmax(dim=1) == target[split:]
        result[name] = round(float(said_right.double().mean()), 4)
    return result


@click.group()
def main() -> None:
    """Train or judge the demo's CLIP model."""
    torch.set_num_threads(1)


@main.command("train")
@click.argument("tower", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--cpu-s", default=420.0, show_default=True, help="CPU seconds to train for.")
@click.option("--text-s", default=60.0, show_default=True, help="CPU seconds for the text tower alone, before.")
@click.option("--state", type=click.Path(path_type=Path), default=Path("runs/clip"), show_default=True, help="Checkpoints.")
def train_command(tower: Path, folder: Path, cpu_s: float, text_s: float, state: Path) -> None:
    """Train on the tower in TOWER, and write the model into FOLDER."""
    train(tower, folder, cpu_s=cpu_s, state=state, text_s=text_s)


@main.command("evaluate")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seed", default=7, show_default=True, help="Seed of the clips.")
@click.option("--clips", default=500, show_default=True, help="How many.")
@click.option("--codec", type=click.Path(exists=True, path_type=Path), help="Judge this autoencoder's reconstructions instead.")
def evaluate_command(folder: Path, seed: int, clips: int, codec: Path | None) -> None:
    """Print the figures of the model in FOLDER on clips of a seed."""
    clip = load_clip(LOCAL + str(folder))
    wear = Wear(overlay=0.2, mark=0.2)
    shown = islice(reconstructions(codec, seed=10**6 + seed), clips) if codec else examples(10**6 + seed, clips, wear)
    figures = evaluate(clip, list(shown), seed)
    click.echo(json.dumps({**figures, "text_states": text_probe(clip, seed)}, indent=1))


if __name__ == "__main__":
    main()
