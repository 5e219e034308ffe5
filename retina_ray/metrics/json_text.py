"""Results as JSON that any program can read, on standard output and in a run's folder.

Standard library only: the command line imports it for every verb.
"""

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """Return a value as JSON; NaN and infinity, which JSON has no words for, become null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
