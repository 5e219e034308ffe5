"""YAML as configurations are written in it: 1e-4 is a number.

YAML 1.1, which PyYAML speaks, takes an exponent without a point for a string.
"""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Reads such numbers."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_Loader` would read as numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def load(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Loader)


def dump(value: Any) -> str:
    """Return a value as YAML, mappings in their own order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False))
