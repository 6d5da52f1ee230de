"""Clips of a run beside the scenes that they show: what a scene deserved, and what it got.

Pure: the truth of a world and the ledger of a run in, pairs out. Every scene and every clip is in at least one pair.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from demo.truth import FileTruth, SceneTruth, Truth
from pipeline.ledger import Fate, Ledger
from pipeline.records import Clip

KEEP, FAILED, LOST, NOTHING = "keep", "failed", "lost", "nothing"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clip with the scene that fills at least half of it; without a scene, or a scene without a clip, one of them is None.

    `got` is "keep", the rule that rejected the clip, "failed", or "lost" for a scene without a clip.
    """

    file: FileTruth
    scene: SceneTruth | None
    clip: Clip | None
    got: str

    @property
    def deserved(self) -> str:
        """The fate that is true of the scene; a clip that shows none deserves nothing."""
        return self.scene.fate if self.scene else NOTHING

    @property
    def kept(self) -> bool:
        """Whether the clip deserved to be kept, and was."""
        return self.got == KEEP == self.deserved


def matched(truth: Truth, ledger: Ledger) -> list[Pair]:
    """Pair the clips of all good files with their scenes; copies of whole files have no clips of their own."""
    fates = clips_by_file(ledger)
    pairs: list[Pair] = []
    for file in truth.videos:
        if file.kind in ("video", "image"):
            pairs += _matched(file, fates.get(file.file, []))
    return pairs


def clips_by_file(ledger: Ledger) -> Mapping[str, list[tuple[Clip, Fate]]]:
    """Return the clips of every file with their fates, in the order of the file."""
    names = {source.key: source.uri.rsplit("/", 1)[-1] for source in ledger.sources}
    found: dict[str, list[tuple[Clip, Fate]]] = defaultdict(list)
    for clip, fate in ledger.fates():
        found[names[clip.source_key]].append((clip, fate))
    return {name: sorted(clips, key=lambda entry: entry[0].start_frame) for name, clips in found.items()}


def got(fate: Fate) -> str:
    """Name a fate as a truth would."""
    if fate.rejected:
        return fate.rejected.rule
    return KEEP if fate.ready else FAILED


def _matched(file: FileTruth, clips: Sequence[tuple[Clip, Fate]]) -> Iterator[Pair]:
    shown = set()
    for clip, fate in clips:
        scene = max(file.scenes, key=lambda scene: _shared_frames(scene, clip), default=None)
        if scene is not None and 2 * _shared_frames(scene, clip) < clip.end_frame - clip.start_frame:
            scene = None
        shown.add(id(scene))
        yield Pair(file=file, scene=scene, clip=clip, got=got(fate))
    yield from (Pair(file=file, scene=scene, clip=None, got=LOST) for scene in file.scenes if id(scene) not in shown)


def _shared_frames(scene: SceneTruth, clip: Clip) -> int:
    return max(0, min(scene.end_frame, clip.end_frame) - max(scene.start_frame, clip.start_frame))
