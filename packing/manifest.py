"""The records that say what a packed corpus is: `manifest.json`, the only commit point that a trainer looks at.

A trainer or sampler reads every dimension from here; nothing is typed twice. The manifest is written last and names every
shard with its sha256, so what it does not name does not exist.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from packing.errors import ShardError
from packing.geometry import Patch, Stride
from packing.store import Store

FORMAT = "packed-v1"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class CodecFacts:
    """The video autoencoder that made the latents; `weights` identifies its bytes."""

    model: str
    subfolder: str
    weights: str
    channels: int
    stride: Stride


@dataclass(frozen=True, kw_only=True)
class TextEncoderFacts:
    """The text encoder that made the caption features; `width` is the size of one feature."""

    model: str
    subfolder: str
    tokenizer: str
    weights: str
    backend: str
    width: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard of a manifest: its tar and its index, with their hashes and what is in them."""

    name: str
    sha256: str
    size_bytes: int
    index: str
    index_sha256: str
    rows: int
    clips: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a packed corpus holds and how it was made."""

    format: str = FORMAT
    sequence_length: int
    patch: Patch
    fps: float
    codec: CodecFacts
    text_encoder: TextEncoderFacts
    seed: int
    plan_hash: str
    fingerprints: Mapping[str, str]
    shards: tuple[ShardEntry, ...]

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.codec.channels

    @property
    def token_dim(self) -> int:
        """Numbers in one token: C·pt·ph·pw."""
        pt, ph, pw = self.patch
        return self.channels * pt * ph * pw

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def clips(self) -> int:
        """Clips in all shards, each counted once."""
        return sum(shard.clips for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Video tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def fill(self) -> float:
        """Tokens as a share of what the rows could hold, 0 to 1."""
        return self.tokens / max(1, self.rows * self.sequence_length)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the manifest's JSON; the identity of the corpus."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Write the manifest as canonical JSON: equal manifests give equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Read what `to_json` wrote.

        Raises:
            ShardError: the text is not a manifest of this format.
        """
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise ShardError(f"a manifest of format {fields['format']!r}; this version reads {FORMAT!r}")
            return cls(
                **{
                    **fields,
                    "patch": tuple(fields["patch"]),
                    "codec": CodecFacts(**{**fields["codec"], "stride": tuple(fields["codec"]["stride"])}),
                    "text_encoder": TextEncoderFacts(**fields["text_encoder"]),
                    "shards": tuple(ShardEntry(**entry) for entry in fields["shards"]),
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"not a {FORMAT} manifest: {error!r}") from error


def head_names(run: Store) -> list[str]:
    """List the numbered records under `packed/` that name the packed corpora of a run, oldest first."""
    return [name for name in run.list("packed") if name.startswith("packed/head-") and name.endswith(".json")]


def open_manifest(url: str) -> tuple[Manifest, str]:
    """Find the manifest of a packed folder, or of the newest packed corpus of a run folder.

    Returns:
        The manifest and the URL of the folder that its shard names are relative to.

    Raises:
        ShardError: there is no packed corpus at `url`.
    """
    store = Store(url)
    if store.exists(MANIFEST):
        return Manifest.from_json(store.read(MANIFEST)), url
    heads = head_names(store)
    if not heads:
        raise ShardError(f"no packed corpus at {url}: neither {MANIFEST} nor packed/ with a finished one")
    folder = f"{url.rstrip('/')}/packed/{_fingerprint_of(store, heads[-1])}"
    if not Store(folder).exists(MANIFEST):
        raise ShardError(f"{store.path(heads[-1])} names a corpus that has no {MANIFEST}: {folder}")
    return Manifest.from_json(Store(folder).read(MANIFEST)), folder


def _fingerprint_of(run: Store, head: str) -> str:
    try:
        return str(json.loads(run.read(head))["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{run.path(head)} does not name a packed corpus: {error!r}") from error
