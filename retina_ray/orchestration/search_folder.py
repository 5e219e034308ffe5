"""The folder of a search: what is searched for, its trials, its winner and its report.

``<storage>/<search name>/``: ``search.json`` (space, goals, options, state, winner), ``config.yaml`` (what the search
starts from), ``trials/`` (the journal), ``tune/`` (Ray Tune's own files, which nothing of ours reads), ``winner.yaml``
(the winner's configuration) and ``report.html``.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from retina_ray import yaml_dialect
from retina_ray.config import RunConfig, from_mapping, to_yaml
from retina_ray.data.store import Store
from retina_ray.errors import ConfigError
from retina_ray.metrics.json_text import json_text
from retina_ray.orchestration.alone import alone
from retina_ray.orchestration.run_folder import CONFIG, RUN, shaping_changes
from retina_ray.provenance import environment
from retina_ray.search.goals import Goal
from retina_ray.search.journal import TrialRecord, read_trials

SEARCH = "search.json"


@dataclass(frozen=True)
class SearchFolder:
    """A search on storage.

    Attributes:
        store: its folder.
    """

    store: Store

    @classmethod
    @contextmanager
    def claim(
        cls, config: RunConfig, described: Mapping[str, Any], *, resume: bool
    ) -> Iterator[tuple["SearchFolder", bool]]:
        """Give the folder of a search that may begin there or go on there, and whether it goes on; writes nothing.

        Until the block ends, no other process of this machine can claim it.

        Args:
            config: what the search starts from.
            described: what it searches and how: everything that its course depends on, and as ``artifacts`` the
                addresses of the stages that a trial consists of where nothing is suggested.
            resume: whether a search of the same name may be continued.

        Raises:
            ConfigError: the search runs, or it exists and is not to be resumed, or it was another one or was begun
                under other conditions, or a run has the name.
        """
        folder = cls(Store(config.runtime.storage).child(config.name))
        if folder.store.exists(RUN):
            raise ConfigError("a run has this name", folder.store.uri, "choose another --name")
        with alone(folder.store, "search"):
            exists = folder.is_there
            if exists and not resume:
                fix = "add --resume to continue it, or choose another --name"
                raise ConfigError("the search exists", folder.store.uri, fix)
            if exists:
                folder._check_same(config, described)
            yield folder, exists

    def begin(self, config: RunConfig, described: Mapping[str, Any]) -> None:
        """Write what a claimed search is; what is known already of one that goes on stays."""
        self.store.write_bytes(CONFIG, to_yaml(config).encode())
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.update(**described, finished=False, environment=environment(), started=started)

    @classmethod
    def open(cls, path: str) -> "SearchFolder":
        """Open an existing search.

        Raises:
            ConfigError: there is none.
        """
        folder = cls(Store(path))
        if not folder.is_there:
            raise ConfigError("not a search", path, "give the folder that `retina-ray tune` printed")
        return folder

    @property
    def is_there(self) -> bool:
        """Whether the folder holds a search."""
        return self.store.exists(SEARCH)

    def update(self, **facts: Any) -> None:
        """Add facts to ``search.json``."""
        known = self.describe() if self.is_there else {}
        self.store.write_bytes(SEARCH, json_text({**known, **facts}).encode())

    def describe(self) -> dict[str, Any]:
        """Return ``search.json``."""
        return dict(json.loads(self.store.read_bytes(SEARCH)))

    def goals(self) -> tuple[Goal, ...]:
        """Return what the search optimises."""
        return tuple(Goal(**goal) for goal in self.describe()["goals"])

    def config(self) -> RunConfig:
        """Return what the search starts from."""
        return from_mapping(yaml_dialect.load(self.store.read_bytes(CONFIG).decode()))

    def trials(self) -> list[TrialRecord]:
        """Return the trials, by number."""
        return read_trials(self.store)

    def _check_same(self, config: RunConfig, described: Mapping[str, Any]) -> None:
        fix = "give the same options as before, or choose another --name"
        known = self.describe()
        if changed := shaping_changes(self.config(), config):
            raise ConfigError("the search to resume had other settings", changed, fix)
        plain = json.loads(json_text(described))
        for name, value in plain.items():
            if name not in ("trials", "artifacts") and known.get(name) != value:
                raise ConfigError(f"the search to resume had another {name}", f"{known.get(name)}, now {value}", fix)
        first, now = known.get("artifacts", {}), plain.get("artifacts", {})
        changed = ", ".join(name for name in now if first.get(name) != now[name])
        if changed:  # else all that is finished would be trained anew, and trials compared that are not alike
            fix = "resume with the same weights, number of workers, loader and device, or choose another --name"
            raise ConfigError("the search to resume was begun under other conditions, which concern", changed, fix)


def plain_goals(goals: tuple[Goal, ...]) -> list[dict[str, str]]:
    """Return goals as `SearchFolder.goals` reads them."""
    return [asdict(goal) for goal in goals]
