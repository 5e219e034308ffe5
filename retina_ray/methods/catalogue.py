"""The methods by name; the only place that knows them all."""

from collections.abc import Mapping
from typing import Any, Protocol

from retina_ray.config import RunConfig
from retina_ray.data.schema import Task
from retina_ray.methods import deepmt, sall
from retina_ray.methods.base import Method, Plan


class _MethodModule(Protocol):
    """What a method's module offers."""

    def plan(self, config: Any, tasks: Mapping[str, Task]) -> Plan: ...

    def build(self, settings: Mapping[str, Any]) -> Method: ...


_METHODS: dict[str, _MethodModule] = {"sall": sall, "deepmt": deepmt}


def plan(config: RunConfig, tasks: Mapping[str, Task]) -> Plan:
    """Return the stages of a run over a data set with these tasks."""
    return _METHODS[config.method.name].plan(config.method, tasks)


def build(name: str, settings: Mapping[str, Any]) -> Method:
    """Return the method of a training stage from the settings that `plan` gave it."""
    return _METHODS[name].build(settings)
