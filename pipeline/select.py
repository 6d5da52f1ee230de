"""Decide which clips go on: pure rules over numbers that are already there. No device, no files, no state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import CLIP_FACTS, RuleConfig, RunConfig
from pipeline.measures import MEASURES
from pipeline.records import Clip


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why a clip does not go on: the rule, the value that it saw (None if there was none) and the bound that it broke."""

    rule: str
    value: float | None
    threshold: float | None


def rules_of(config: RunConfig) -> list[RuleConfig]:
    """Return all rules of a run in the order in which they are asked; those over weight-free numbers come first.

    They are asked before anything is scored, so a clip that is too short or too dark never sees a model.
    """
    shortest = RuleConfig(value="duration_s", min=config.split.min_clip_s, name="too_short")
    rules = [shortest, *config.select.rules]
    return sorted(rules, key=lambda rule: not is_free(rule))


def is_free(rule: RuleConfig) -> bool:
    """Tell whether a rule needs no model."""
    return rule.value in MEASURES or rule.value in CLIP_FACTS


def rejection(clip: Clip, scores: Mapping[str, float] | None, rules: Sequence[RuleConfig]) -> Rejection | None:
    """Return the first rule that a clip breaks, or None. Without scores only the free rules are asked."""
    values = {**clip_facts(clip), **clip.measures, **(scores or {})}
    asked = rules if scores is not None else [rule for rule in rules if is_free(rule)]
    return next((broken for rule in asked if (broken := _broken(rule, values))), None)


def clip_facts(clip: Clip) -> dict[str, float]:
    """Return the facts of a clip that rules can be over; sizes are without black bars, a still image has no duration."""
    _, _, height, width = clip.crop
    facts = {"short_side_px": float(min(height, width)), "aspect": width / height}
    return facts if clip.fps == 0 else {**facts, "duration_s": clip.duration_s, "fps": clip.fps}


def _broken(rule: RuleConfig, values: Mapping[str, float]) -> Rejection | None:
    name, value = rule.name or rule.value, values.get(rule.value)
    if value is None:
        return Rejection(rule=name, value=None, threshold=None) if rule.missing == "reject" else None
    if rule.min is not None and not value >= rule.min:  # a NaN breaks every bound
        return Rejection(rule=name, value=value, threshold=rule.min)
    if rule.max is not None and not value <= rule.max:
        return Rejection(rule=name, value=value, threshold=rule.max)
    return None
