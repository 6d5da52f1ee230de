"""Load a frozen dataclass tree from one YAML file and dotted overrides; the first mistake is one clear line.

OmegaConf checks keys and types against the dataclasses, `__post_init__` of each checks ranges. Nothing starts before both pass.
"""

import io
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import fsspec
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from packing.errors import ConfigError

Config = TypeVar("Config")


def load_config(cls: type[Config], path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults of `cls`, the YAML file at `path` and `key.sub=value` overrides, the later winning.

    Raises:
        ConfigError: names the file or override, the key and, for an unknown key, the nearest valid one.
    """
    merged = OmegaConf.structured(cls)
    for origin, layer in [(path, _read(path)), ("command line", _dotlist(overrides))]:
        merged = _merged(merged, layer, str(origin))
    return _built(cls, merged)


def dump_config(config: object) -> str:
    """Write a config tree as the YAML that `load_config` reads back to an equal tree."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _built(cls: type[Config], merged: Any) -> Config:
    try:
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"missing: {', '.join(missing)}; give each in the config, or as key=value")
        return cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _merged(base: Any, layer: Any, origin: str) -> Any:
    try:
        return OmegaConf.merge(base, layer)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a key into a list
        raise ConfigError(f"{origin}: {_one_line(error)}") from error


def _read(path: str | None) -> Any:
    if path is None:
        return OmegaConf.create({})
    try:
        fs, place = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {path}: {_first_line(error)}") from error
    if not fs.isfile(place):
        raise ConfigError(f"no config file at {path}")
    try:
        layer = OmegaConf.load(io.StringIO(fs.cat_file(place).decode()))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {_yaml_problem(error)}") from error
    if not OmegaConf.is_dict(layer):
        raise ConfigError(f"{path} is a list; a config is a mapping of keys to values")
    return layer


def _dotlist(overrides: Sequence[str]) -> Any:
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise ConfigError(f"an override has the form key=value, not {item!r}")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"command line: {_first_line(error)}") from error


def _one_line(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    message = _first_line(error)
    return message if not key or str(key) in message else f"{key}: {message}"


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
