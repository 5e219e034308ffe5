"""The search space a user names: a function that suggests configurations, and what it wants to be judged by.

The contract of such a function is in the package ``tune_spaces``, which holds the product's own.
"""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna

import tune_spaces
from retina_ray.errors import ConfigError

Suggest = Callable[[optuna.Trial], Mapping[str, Any]]
Points = Callable[[dict[str, Any]], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class SearchSpace:
    """What a search varies.

    Attributes:
        name: as the user gave it.
        suggest: draws a configuration's values by dotted path from a trial.
        points: returns the parameters to try first, given the configuration as plain values.
        metric: name of the figure to optimise, several separated by commas; empty where the space has none.
        mode: ``max`` or ``min``, one for each metric, separated by commas; empty where the space has none.
    """

    name: str
    suggest: Suggest
    points: Points
    metric: str
    mode: str

    def overrides(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return what the space suggests.

        Raises:
            ConfigError: the function fails, or returns something else than values by path.
        """
        with self._explained():
            values = self.suggest(trial)
        if not isinstance(values, Mapping) or not all(isinstance(path, str) for path in values):
            fix = "return a mapping of dotted configuration path to value"
            raise ConfigError("the search space returns no configuration", f"{self.name}: {values!r}", fix)
        return dict(values)

    def first(self, config: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the parameters that the space wants tried first.

        Raises:
            ConfigError: it fails.
        """
        with self._explained():
            return [dict(point) for point in self.points(config)]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            fix = "mend it, or choose a --recipe that it is made for"
            raise ConfigError("the search space fails", f"{self.name}: {type(error).__name__}: {error}", fix) from error


def load_space(name: str) -> SearchSpace:
    """Return a space: one of ``tune_spaces`` by its name, or any ``module:function``.

    A module is looked for in the current folder as well.

    Raises:
        ConfigError: there is no such module or function.
    """
    module_name, colon, function = name.partition(":")
    if not colon:
        known = [module.name for module in pkgutil.iter_modules(tune_spaces.__path__)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            fix = f"did you mean {near}? A space of your own is module:function"
            raise ConfigError("unknown search space", name, fix)
        module_name, function = f"tune_spaces.{name}", "suggest"
    module = _import(module_name, name)
    suggest = getattr(module, function, None)
    if not callable(suggest):
        raise ConfigError("the module has no such function", name, f"define {function}(trial) in {module.__file__}")
    return SearchSpace(
        name=name,
        suggest=suggest,
        points=getattr(module, "points", lambda config: []),
        metric=getattr(module, "METRIC", ""),
        mode=getattr(module, "MODE", ""),
    )


def _import(module_name: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        fix = "give module:function, with the module in the current folder or installed"
        raise ConfigError("cannot import the search space", f"{name} ({error})", fix) from error
    finally:
        sys.path.remove(here)
