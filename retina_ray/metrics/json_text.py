"""Results as JSON that any program can read, on standard output and in a run's folder.

Standard library only: the command line imports it for every verb.
"""

import json
import math
from typing import Any


def json_text(value: Any, *, indent: int | None = 1) -> str:
    """Return a value as JSON; NaN and infinity, which JSON has no words for, become null.

    Args:
        value: of dictionaries, lists, texts, numbers, truth values and None.
        indent: spaces per level; None: all on one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def null_as_nan(value: Any) -> Any:
    """Return what was read of `json_text` with NaN for null; for figures, in which null stands for nothing else."""
    if isinstance(value, dict):
        return {key: null_as_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [null_as_nan(inner) for inner in value]
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
