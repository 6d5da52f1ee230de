"""The errors that a user of clipmill can cause, as one small tree.

Everything below `ClipmillError` is a user's mistake or the state of the world outside: the front door prints it as one line
and exits with 2. A bug is never wrapped and propagates with its traceback. Bad data is not an error but an outcome.

    ClipmillError
    ├── ConfigError   a key, type or range in a config or an override
    ├── InputError    nothing to read where the config says there is
    ├── ModelError    a model folder or id that cannot be loaded
    ├── StoreError    the disk or bucket refuses a read or write
    └── ShardError    a packed corpus that is missing, damaged or swapped
"""


class ClipmillError(Exception):
    """A mistake that its user can mend; the message says what, where and how."""


class ConfigError(ClipmillError):
    """A key, a type or a range in a config or in an override is wrong."""


class InputError(ClipmillError):
    """The input of a job is missing or empty."""


class ModelError(ClipmillError):
    """A model folder or id cannot be loaded as what the config says it is."""


class StoreError(ClipmillError):
    """The disk or bucket under a run refused a read or a write."""


class ShardError(ClipmillError):
    """A packed corpus is missing, damaged, or not the one that was asked for."""
