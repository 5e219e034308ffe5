"""Custom resources against their CRDs, as a strict API server checks them: wrong types, and keys that it does not know.

Structural schemas become JSON schemas: what they know beside these is an integer or a string in the same place, lists
that are sets or maps, and defaults. The built-in kinds are checked by the library ``kubernetes_validate``.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

CRDS = Path(__file__).parent / "crds"

_SAME = (
    *("enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties"),
    *("maxProperties", "required", "oneOf", "allOf", "not"),
)
_INT32 = {"minimum": -(2**31), "maximum": 2**31 - 1}

Schema = dict[str, Any]


def to_json_schema(structural: Mapping[str, Any]) -> Schema:
    """Return the JSON schema of what a structural schema accepts, keys that it does not know refused."""
    schema = {key: structural[key] for key in _SAME if key in structural}
    free = structural.get("x-kubernetes-preserve-unknown-fields", False)
    if structural.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    elif "type" in structural:
        schema["type"] = structural["type"]
    if structural.get("format") == "int32":
        schema = {**_INT32, **schema}
    if structural.get("nullable"):
        schema["type"] = [schema["type"], "null"]
    if "properties" in structural:
        schema["properties"] = {name: to_json_schema(each) for name, each in structural["properties"].items()}
    values = structural.get("additionalProperties")
    if isinstance(values, dict):
        schema["additionalProperties"] = to_json_schema(values)
    elif structural.get("type") == "object" and not free and values is not True:
        schema["additionalProperties"] = False
    if "items" in structural:
        schema["items"] = to_json_schema(structural["items"])
        keys = structural.get("x-kubernetes-list-map-keys", [])
        defaults = {key: structural["items"]["properties"][key].get("default") for key in keys}
        if structural.get("x-kubernetes-list-type") in ("set", "map"):
            schema["distinct"] = defaults
    # What compares with an earlier version of the object says nothing about a new one.
    rules = [each["rule"] for each in structural.get("x-kubernetes-validations", []) if "oldSelf" not in each["rule"]]
    if rules:
        schema["rules"] = rules
    return schema


def problems(document: Mapping[str, Any]) -> list[str]:
    """Return what a strict API server has against a custom resource, a sentence each."""
    key = (document.get("apiVersion"), document.get("kind"))
    validator = validators().get(key)
    if validator is None:
        return [f"no such kind: {key}"]
    return [text for error in validator.iter_errors(document) for text in _told(error)]


@cache
def validators() -> Mapping[tuple[Any, Any], Any]:
    """Return what checks a kind, by API version and name."""
    found = {}
    for file in sorted(CRDS.glob("*.yaml")):
        definition = yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            if not version["served"] or version.get("deprecated"):
                continue
            schema = to_json_schema(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = _METADATA
            found[f"{definition['group']}/{version['name']}", definition["names"]["kind"]] = _Validator(schema)
    return found


_METADATA: Schema = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {
            "type": "object",
            "additionalProperties": {"type": "string", "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"},
        },
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _distinct(validator: Any, defaults: Schema, instance: Any, schema: Schema) -> Iterator[ValidationError]:
    """Refuse the same entry twice: the same keys, or where the list is a set, the same value."""
    seen = []
    for each in instance if isinstance(instance, list) else []:
        is_map = bool(defaults) and isinstance(each, dict)
        same = {key: each.get(key, default) for key, default in defaults.items()} if is_map else each
        if same in seen:
            yield ValidationError(f"{same} is there twice")
        seen.append(same)


def _rules(validator: Any, rules: list[str], instance: Any, schema: Schema) -> Iterator[ValidationError]:
    """Refuse what has rules in CEL, which nothing here evaluates."""
    yield ValidationError(f"cannot be checked here: {'; '.join(rules)}")


_Validator = extend(Draft202012Validator, {"distinct": _distinct, "rules": _rules})


def _told(error: ValidationError) -> list[str]:
    where = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, error.absolute_path)))
    if error.validator == "additionalProperties":
        unknown = sorted(set(error.instance) - set(error.schema.get("properties", {})))
        return [f"{where}: unknown key {key}" for key in unknown]
    return [f"{where}: {error.message[:300]}"]
