"""What can be told about a caption from its text alone: pure functions over strings, no model.

`clean_caption` removes what is not description; `caption_flags` names what is wrong with the rest. Neither
drops anything: a flag is a measure, and the rules of a run decide. Thresholds are starting points from
`reference/captioners.md`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

LOOP_MIN_WORDS: Final = 24
"""Repeated 4-grams are not judged in texts shorter than this."""

LOOP_SHARE: Final = 0.25
"""A text loops when this share of its 4-grams occurs more than once: good ones have 0, loops above 0.8."""

TAIL_MAX_PERIOD: Final = 40
"""Longest phrase, in words, that is looked for at the end of a text."""

TAIL_MIN_WORDS: Final = 6
"""A repeated tail shorter than this is style ("a long, long, long road"), not a loop."""

_CONTROL_TOKEN = re.compile(r"<\|[^<>|]{1,64}\|>|</?(?:s|pad|unk|bos|eos|image|video|(?:start|end)_of_turn)>")
_OPENING = re.compile(
    r"""^(?:
        assistant\s*:
      | (?:sure|certainly|of\ course|okay)\s*[,.!:]
      | here(?:'s|\ is)\ (?:a|the)\ [^.:]{0,60}(?:caption|description)\b[^.:]{0,40}:
      | (?:caption|description)\s*:
      | (?:in|throughout)\ (?:this|the)\ (?:short\ )?(?:video|clip|footage|image)s?\s*,
      | (?:this|the)\ (?:short\ )?(?:video|clip|footage|image)s?\ (?:clip\ )?
        (?:shows?|captures?|features?|depicts?|presents?|displays?|portrays?|showcases?|is|are)\b(?:\ that\b)?
    )\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL = re.compile(
    r"(?:i['\u2019]?m|i am) (?:sorry|unable|not able)\b|sorry,|as an ai\b|unable to\b"
    r"|i (?:cannot|can['\u2019]?t|can not|don['\u2019]?t see|do not see)\b",
    re.IGNORECASE,
)
_FRAME_TALK = re.compile(
    r"\b(?:first|second|third|next|last|final) (?:frame|image)\b|\bframe \d+\b"
    r"|\bin (?:the |this )?(?:image|frame)s?\b",
    re.IGNORECASE,
)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def clean_caption(raw_text: str) -> str:
    """Reduce a model's answer to the description: one line, no control tokens, no "The video shows".

    Cleaning a clean caption changes nothing. The result may be empty.
    """
    text = raw_text
    while (shorter := _strip_opening(_one_line(_CONTROL_TOKEN.sub(" ", text)))) != text:
        text = shorter
    return text


def caption_flags(text: str, *, truncated: bool) -> tuple[str, ...]:
    """Name what is wrong with a clean caption, in a fixed order; nothing when it is fine.

    `empty`: no letter or digit in it. `truncated`: cut by the token limit. `loop`: it repeats itself.
        `refusal`: it
    declines to describe. `frame_talk`: it tells of frames or images instead of the scene.
    """
    found = {
        "empty": not any(map(str.isalnum, text)),
        "truncated": truncated,
        "loop": is_loop(text),
        "refusal": _REFUSAL.match(text) is not None,
        "frame_talk": _FRAME_TALK.search(text) is not None,
    }
    return tuple(flag for flag, holds in found.items() if holds)


def is_loop(text: str) -> bool:
    """Tell whether a text repeats itself: many equal 4-grams in all, or one phrase three times at its end."""
    words = _words(text)
    # A cut in the middle of a phrase hides the loop unless the last word is left out.
    return repeated_share(words) >= LOOP_SHARE or tail_repeats(words) or tail_repeats(words[:-1])


def repeated_share(words: Sequence[str], n: int = 4) -> float:
    """Return the share of n-grams, in 0..1, that occur more than once; 0 for fewer than 24 words."""
    if len(words) < LOOP_MIN_WORDS:
        return 0.0
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    return sum(count for count in counts.values() if count > 1) / counts.total()


def tail_repeats(words: Sequence[str], times: int = 3) -> bool:
    """Tell whether the words end with `times` times the same phrase, of 1 to 40 words, 6 or more in all."""
    for period in range(1, min(TAIL_MAX_PERIOD, len(words) // times) + 1):
        span = max(period * times, TAIL_MIN_WORDS)
        tail = words[-span:]
        if len(tail) == span and all(tail[at] == tail[at - period] for at in range(period, span)):
            return True
    return False


def _one_line(text: str) -> str:
    """Drop controls, lone surrogates and undecodable bytes, and make each run of blanks one space."""
    kept = (" " if char.isspace() else char for char in text if char.isspace() or _is_text(char))
    return " ".join("".join(kept).split())


def _is_text(char: str) -> bool:
    """Whether a caption may hold a character; zero-width joiners stay, since scripts and emoji need them."""
    if char in "\u200c\u200d":
        return True
    return char != "\ufffd" and unicodedata.category(char) not in {"Cc", "Cf", "Cs"}


def _strip_opening(text: str) -> str:
    """Cut one opening phrase and start the remainder with a capital."""
    remainder = _OPENING.sub("", text)
    return text if remainder == text else remainder[:1].upper() + remainder[1:]


def _words(text: str) -> list[str]:
    """Split into casefolded words without punctuation; Chinese, Japanese and Korean split into characters."""
    folded = text.casefold()
    if 2 * len(_CJK.findall(folded)) > len(folded):
        return [char for char in folded if char.isalnum()]
    return _WORD.findall(folded)
