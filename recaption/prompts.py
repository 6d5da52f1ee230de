"""The prompts that ship with clipmill.

A text under an id never changes, because captions are stored by it: write a `.v2` instead.
"""

from collections.abc import Mapping
from types import MappingProxyType

from recaption.captioner import Prompt

_SHORT = Prompt(
    id="short.v1",
    text=(
        "Describe this video in one sentence: the main subject, what it looks like, what it does, and where. "
        "Begin with the subject itself. State only what can be seen."
    ),
    max_new_tokens=64,
)

_DENSE = Prompt(
    id="dense.v1",
    text=(
        "Describe this video in detail, in one paragraph of four to eight sentences. Cover the subjects and "
        "how they look, what happens in the order in which it happens, the setting and the light, how the "
        "camera moves, and the visual style. Begin with the subject itself. Describe the whole as one "
        "continuous event: do not mention frames, images or the video. State only what can be seen; do not "
        "guess at names, sounds, thoughts or what happens outside."
    ),
    max_new_tokens=320,
)

PROMPTS: Mapping[str, Prompt] = MappingProxyType({prompt.id: prompt for prompt in (_SHORT, _DENSE)})
"""The shipped prompts by id: `short.v1`, one sentence; `dense.v1`, one paragraph."""
