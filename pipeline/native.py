"""The loops over samples that are compiled (`pipeline/_native.c`): `compiled` has them, or is None where they are not.

Each is used in one place, next to the same in NumPy and OpenCV, which gives the same and takes longer.
"""

import contextlib
import importlib
from typing import Any

compiled: Any = None
with contextlib.suppress(ImportError):
    compiled = importlib.import_module("pipeline._native")
