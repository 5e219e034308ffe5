"""API keys: who may ask, for what, how often. The file holds their hashes, never the keys themselves.

A key is 256 random bits, so that its plain SHA-256 gives nothing away: the file may be readable for all (as a mounted
Kubernetes secret is by default), but not writable, since whoever may write to it may let anybody in.
"""

import fcntl
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml
from pydantic import Field, ValidationError, field_validator

from retina_ray import yaml_dialect
from retina_ray.config import read_yaml
from retina_ray.config_section import Section
from retina_ray.errors import ConfigError
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.service import ANONYMOUS

Scope = Literal["grade", "metrics"]
"""What a key is good for: photographs and the list of models, or the service's metrics."""

_WHAT = "the file of API keys"
_WRITABLE_BY_ALL = 0o002


class ApiKey(Section):
    """An entry of the file."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """What logs call the key."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    """Of the key's text, hexadecimal."""
    per_minute: int = Field(ge=1, le=10**9)
    """Photographs that it may send a minute; as many may come at once."""
    scopes: tuple[Scope, ...] = Field(default=("grade",), min_length=1, strict=False)
    """What it is good for."""

    @field_validator("id")
    @classmethod
    def _id_is_free(cls, key_id: str) -> str:
        if key_id == ANONYMOUS:
            raise ValueError(f"{ANONYMOUS} means requests without a key; choose another id")
        return key_id


class KnownKeys(Protocol):
    """Who may ask: `ApiKeys`, or those in a file that may change."""

    @property
    def per_minute(self) -> dict[str, int]:
        """Photographs a minute, by key id."""

    def check(self, presented: str, scope: Scope) -> ApiKey:
        """Return the key that a request presents, as `ApiKeys.check` does."""


class _File(Section):
    keys: tuple[ApiKey, ...] = Field(min_length=1, strict=False)


class ApiKeys:
    """The keys that a service knows.

    Args:
        keys: each with an id and a hash of its own.

    Raises:
        ConfigError: two have the same id or the same hash.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)
        ids: dict[str, str] = {}
        for key in self._keys:
            if key.id in ids.values():
                raise ConfigError("two API keys have the same id", key.id, "give each key an id of its own")
            if key.sha256 in ids:
                both = f"{ids[key.sha256]}, {key.id}"
                raise ConfigError("one API key has two ids", both, "make each a key of its own")
            ids[key.sha256] = key.id

    @classmethod
    def load(cls, path: str | Path) -> "ApiKeys":
        """Read the keys from a YAML file.

        Raises:
            ConfigError: the file is missing, everybody may write to it, or it is no list of keys. The message names the
                place of what does not fit, not the value, which may be a key that stands there by mistake.
        """
        values = read_yaml(path, _WHAT)
        if os.stat(path).st_mode & _WRITABLE_BY_ALL:
            raise ConfigError(f"everybody may write to {_WHAT}", str(path), "take that right away: chmod o-w")
        return cls(_parse(values, path))

    @property
    def per_minute(self) -> dict[str, int]:
        """Photographs a minute, by key id."""
        return {key.id: key.per_minute for key in self._keys}

    def check(self, presented: str, scope: Scope) -> ApiKey:
        """Return the key that a request presents.

        The time that it takes does not depend on how much of a key is right, nor on which one it is.

        Args:
            presented: the key's text, as the request holds it.
            scope: what the request is about.

        Raises:
            RefusedError: ``unauthenticated``: no such key, or not one for this scope.
        """
        digest = sha256(presented.encode("utf-8", "surrogatepass")).hexdigest()
        matches = [hmac.compare_digest(key.sha256, digest) for key in self._keys]
        if True not in matches:
            raise RefusedError("unauthenticated", "the API key is not known here; ask the service's owner for one")
        key = self._keys[matches.index(True)]
        if scope not in key.scopes:
            fix = "ask the service's owner for a key with this scope"
            raise RefusedError("unauthenticated", f"the API key {key.id} is not for {scope}; {fix}")
        return key


def new_key() -> tuple[str, str]:
    """Draw a key; return its text (``rr_`` and 43 characters that are safe in a URL) and its SHA-256."""
    text = f"rr_{secrets.token_urlsafe(32)}"
    return text, sha256(text.encode()).hexdigest()


def issue(key_id: str, per_minute: int, scopes: Sequence[str]) -> tuple[str, ApiKey]:
    """Draw a key; return its text, which is kept nowhere, and its entry.

    Raises:
        ConfigError: an argument does not fit.
    """
    text, digest = new_key()
    entry = {"id": key_id, "sha256": digest, "per_minute": per_minute, "scopes": scopes}
    try:
        return text, ApiKey.model_validate(entry)
    except ValidationError as error:
        raise _explain(error, f"the new key {key_id}") from None


def as_yaml(key: ApiKey) -> str:
    """Return a key's entry as it stands in the file, below ``keys:``."""
    return yaml_dialect.dump([key.model_dump(mode="json")])


def add(path: str | Path, key: ApiKey) -> None:
    """Append a key to the file, which is made where there is none; what it holds, comments too, is left as it is.

    Raises:
        ConfigError: the file is not as `ApiKeys.load` wants it, holds the id already, is laid out in a way that
            nothing can be appended to, or cannot be written to.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write to {_WHAT}", str(path), f"check the path ({error.strerror})") from None
    with open(descriptor, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        old = ApiKeys.load(path)._keys if os.fstat(descriptor).st_size else ()
        ApiKeys((*old, key))
        before = file.read()
        addition = _addition(before, key)
        try:
            grown = _parse(yaml_dialect.load(before + addition), path)
        except (yaml.YAMLError, ConfigError):
            grown = ()
        if grown != (*old, key):
            fix = "begin each key on a line of its own with '- id:', as `retina-ray serve keys new` prints it"
            raise ConfigError(f"nothing can be appended to {_WHAT}", str(path), fix)
        file.write(addition)


def _addition(before: str, key: ApiKey) -> str:
    """Return what makes the text ``before`` hold the key, indented as the keys in it."""
    first = re.search(r"^( *)- ", before, re.MULTILINE)
    indent = first[1] if first else ""
    entry = "".join(f"{indent}{line}\n" for line in as_yaml(key).splitlines())
    if not before:
        return f"keys:\n{entry}"
    return entry if before.endswith("\n") else f"\n{entry}"


def _parse(values: Any, path: str | Path) -> tuple[ApiKey, ...]:
    try:
        return _File.model_validate(values).keys
    except ValidationError as error:
        raise _explain(error, path) from None


def _explain(error: ValidationError, where: str | Path) -> ConfigError:
    """Turn pydantic's first complaint into one line that repeats no value."""
    first = error.errors(include_url=False, include_input=False)[0]
    location = ".".join(map(str, first["loc"]))
    what, fix = "this does not fit an API key", first["msg"].removeprefix("Value error, ")
    if first["loc"][-1:] == ("sha256",):
        fix = "write the SHA-256 that `retina-ray serve keys new` prints, 64 digits of 0-9 and a-f"
    elif first["type"] == "extra_forbidden":
        known = _File if len(first["loc"]) == 1 else ApiKey
        what, fix = "unknown field", f"use {', '.join(known.model_fields)}"
    elif first["type"] == "missing":
        what, fix = "missing field", "add it"
    elif first["type"] in ("model_type", "tuple_type"):
        fix = "write it as `retina-ray serve keys new` prints it"
    fix = re.sub(r"^\w+ should", "it should", fix)
    return ConfigError(what, f"{where}, {location}" if location else str(where), fix)
