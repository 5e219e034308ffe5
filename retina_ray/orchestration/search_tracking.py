"""A search in MLflow: one run for the search, and nested in it one for each trial."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from retina_ray.config import RunConfig, override
from retina_ray.registry import Tracker
from retina_ray.search.journal import TrialRecord


class SearchTracker:
    """Records the events of a search; does nothing where tracking is disabled.

    Args:
        config: what the search starts from; its name is the search's.
        resume: continue the MLflow runs of a search of the same address.

    Raises:
        ResourceError: on entry, when MLflow cannot be reached.
    """

    def __init__(self, config: RunConfig, *, resume: bool) -> None:
        self._config = config
        self._search = Tracker(config, run_name=config.name, resume=resume)
        self._open: dict[int, tuple[Tracker, ExitStack]] = {}

    def __enter__(self) -> Self:
        self._search.__enter__()
        self._search.log_params(self._config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _, stack in self._open.values():
            stack.__exit__(kind, error, traceback)
        self._search.__exit__(kind, error, traceback)

    @property
    def run_id(self) -> str:
        """The search's MLflow run; empty where tracking is disabled."""
        return self._search.run_id

    def __call__(self, record: TrialRecord) -> None:
        """Record a trial's latest event."""
        tracker, stack = self._open.get(record.number) or self._begin(record)
        if record.state == "running" and record.reports:
            tracker.log_figures(record.reports[-1].figures, step=len(record.reports))
        if record.state != "running":
            stack.close()
            del self._open[record.number]

    def _begin(self, record: TrialRecord) -> tuple[Tracker, ExitStack]:
        stack = ExitStack()
        name = f"{self._config.name}/trials/{record.number:05}"
        # A trial that was begun before a restart goes on in its run.
        tracker = stack.enter_context(Tracker(self._config, run_name=name, resume=True, parent=self.run_id))
        tracker.log_params(override(self._config, record.overrides))
        self._open[record.number] = (tracker, stack)
        return self._open[record.number]
