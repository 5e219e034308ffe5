"""MLflow: what a run is recorded as, and where its bundle is registered.

MLflow is used through its client alone: no global run, no autologging. What is not here, though offered here too:
where the records are (``mlflow_access``) and the registered models (``model_versions``).
"""

import logging
import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from retina_ray.bundle import Bundle
from retina_ray.config import RunConfig, dotted_paths, value_at
from retina_ray.data.store import Store
from retina_ray.metrics.summary import TaskSummary
from retina_ray.mlflow_access import connect, explained, in_one_line, is_server, tracking_uri
from retina_ray.model_versions import RegisteredModel, list_models, register_version, resolve_model, show_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["RegisteredModel", "Tracker", "list_models", "resolve_model", "show_model", "tracking_uri"]

RUN_TAG = "retina_ray.run"
"""Tag of an MLflow run: the address of the run's folder, by which a resumed run finds it."""

MLFLOW_PARENT = "mlflow.parentRunId"
"""Tag by which MLflow nests runs."""

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended; ``KILLED`` is from outside, by a user or a time limit."""

_FAILURES_TOLERATED = 3
"""Failed log calls in a row; each may have waited out MLflow's own retries, minutes long."""

_MOST_NESTED = 10_000
"""Runs within a run that are looked at; MLflow's own limit is higher."""

_logger = logging.getLogger(__name__)


class Tracker:
    """Records a run in MLflow; does nothing where tracking is disabled.

    A run that is resumed continues its MLflow run, and metrics that it computes again are not recorded twice. Once the
    run is open, an MLflow that fails costs records and a warning, never the training.

    Args:
        config: the resolved configuration.
        run_name: name of the run below ``runtime.storage``.
        resume: continue the MLflow run of the same address and parent, if there is one.
        parent: id of the MLflow run that this one is nested in.

    Raises:
        ResourceError: on entry, when MLflow cannot be reached.
    """

    def __init__(self, config: RunConfig, *, run_name: str, resume: bool, parent: str = "") -> None:
        self._config = config
        self._run_name = run_name
        self._resume = resume
        self._parent = parent
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._resumed = False
        self._recorded: dict[str, int] = {}
        self._failures = 0

    def __enter__(self) -> Self:
        if self._config.tracking.enabled:
            with explained(self._config):
                self._client = connect(self._config)
                self._open(self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")

    def end(self, status: RunStatus) -> None:
        """Close the run, as leaving the block does."""
        self._attempt(lambda client: client.set_terminated(self._run_id, status))

    @property
    def run_id(self) -> str:
        """The MLflow run's id; empty where tracking is disabled."""
        return self._run_id

    def nested(self, run_name: str, *, resume: bool) -> "Tracker | None":
        """Open a run nested in this one; whoever asks for it ends it.

        Args:
            run_name: as the class has it.
            resume: as the class has it.

        Returns:
            Its tracker, or None where tracking is disabled or MLflow fails, which costs a warning.
        """
        tracker = Tracker(self._config, run_name=run_name, resume=resume, parent=self._run_id)
        self._attempt(tracker._open)
        if not tracker.run_id:
            return None
        tracker._client = self._client
        return tracker

    def nested_statuses(self) -> dict[str, str]:
        """Return MLflow's status of each run nested in this one, by name; nothing where MLflow does not answer."""
        found: dict[str, str] = {}

        def look(client: "MlflowClient") -> None:
            mine = f'tags.`{MLFLOW_PARENT}` = "{self._run_id}"'
            experiment = _experiment(client, self._config)
            runs = client.search_runs([experiment], filter_string=mine, max_results=_MOST_NESTED)
            found.update({run.info.run_name: run.info.status for run in runs})

        self._attempt(look)
        return found

    def log_figures(self, figures: Mapping[str, Any], *, step: int) -> None:
        """Record numbers at a step; what is no number is left out."""
        self._log_metrics(figures, step=step)

    def log_params(self, config: RunConfig) -> None:
        """Record the configuration by dotted path; a parameter that is already recorded keeps its first value."""
        self.log_values({path: value_at(config, path) for path in dotted_paths(config) if path != "tracking.uri"})

    def log_values(self, values: Mapping[str, Any]) -> None:
        """Record parameters by dotted path, valid or not; one that is already recorded keeps its first value."""

        def log(client: "MlflowClient") -> None:
            from mlflow.entities import Param

            known = client.get_run(self._run_id).data.params
            new = [Param(path, str(value)) for path, value in values.items() if path not in known]
            client.log_batch(self._run_id, params=new)

        self._attempt(log)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record words by which MLflow finds the run."""

        def log(client: "MlflowClient") -> None:
            from mlflow.entities import RunTag

            client.log_batch(self._run_id, tags=[RunTag(name, value) for name, value in tags.items()])

        self._attempt(log)

    def log_record(self, record: Mapping[str, Any], stage: str) -> None:
        """Record a progress record's numbers as ``<stage>/<key>`` at its ``step``."""
        values = {f"{stage}/{key}": value for key, value in record.items() if key != "step"}
        self._log_metrics(values, step=int(record.get("step", 0)))

    def log_summary(self, summaries: Sequence[TaskSummary]) -> None:
        """Record test metrics as ``test/<model>/<task>/<metric>``, their intervals as ``..._low`` and ``..._high``."""
        values: dict[str, float] = {}
        for summary in summaries:
            prefix = f"test/{summary.model}/{summary.task}"
            values.update({f"{prefix}/{name}": value for name, value in summary.metrics.items()})
            for name, (low, high) in summary.intervals.items():
                values.update({f"{prefix}/{name}_low": low, f"{prefix}/{name}_high": high})
        self._log_metrics(values, step=0)

    def register(self, bundle: Bundle, folder: str | Path) -> int | None:
        """Register a bundle as the newest version of ``tracking.model_name``; the same bundle only once.

        Args:
            bundle: what is registered.
            folder: where it lies for good: a local folder or an ``s3://`` prefix.

        Returns:
            The version, or None where tracking is disabled.

        Raises:
            ResourceError: when MLflow does not take it.
        """
        if self._client is None:
            return None
        with explained(self._config):
            return register_version(self._client, bundle, Store(str(folder)), config=self._config, run_id=self._run_id)

    def _open(self, client: "MlflowClient") -> None:
        """Find the run by its tag, or create it."""
        address = Store(self._config.runtime.storage).child(self._run_name).uri
        experiment = _experiment(client, self._config)
        wanted = f'tags.`{RUN_TAG}` = "{address}"'
        if self._parent:  # a deleted search's trials have the addresses of those of a new one of its name
            wanted += f' AND tags.`{MLFLOW_PARENT}` = "{self._parent}"'
        # newest first: a run of the same name may have been deleted and trained anew
        runs = client.search_runs([experiment], filter_string=wanted, max_results=1) if self._resume else []
        if runs:
            self._run_id, self._resumed = runs[0].info.run_id, True
            client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: address, **({MLFLOW_PARENT: self._parent} if self._parent else {})}
            self._run_id = client.create_run(experiment, tags=tags, run_name=self._run_name).info.run_id

    def _log_metrics(self, values: Mapping[str, Any], *, step: int) -> None:
        now_ms = int(time.time() * 1000)

        def log(client: "MlflowClient") -> None:
            from mlflow.entities import Metric

            new = [
                Metric(key, float(value), now_ms, step)
                for key, value in values.items()
                if _is_number(value) and step > self._last_step(client, key)
            ]
            client.log_batch(self._run_id, metrics=new)

        self._attempt(log)

    def _last_step(self, client: "MlflowClient", key: str) -> int:
        """Return the last step of a metric that was recorded before this run was resumed, or -1."""
        if not self._resumed:
            return -1
        if key not in self._recorded:
            history = client.get_metric_history(self._run_id, key)
            self._recorded[key] = max((metric.step for metric in history), default=-1)
        return self._recorded[key]

    def _attempt(self, action: Callable[["MlflowClient"], None]) -> None:
        """Do something to the run; failures are reported, and after several in a row nothing more is tried."""
        if self._client is None or self._failures >= _FAILURES_TOLERATED:
            return
        from mlflow.exceptions import MlflowException

        try:
            action(self._client)
            self._failures = 0
        except (MlflowException, OSError) as error:
            self._failures += 1
            last = "; no more is recorded" if self._failures == _FAILURES_TOLERATED else ""
            _logger.warning("MLflow did not record a part of run %s (%s)%s", self._run_name, in_one_line(error), last)


def _experiment(client: "MlflowClient", config: RunConfig) -> str:
    """Return the id of the experiment, created if need be."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Without a server, MLflow would put artifacts below the current directory.
    location = None if is_server(config) else f"{Store(config.runtime.storage).uri}/.mlflow/artifacts"
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another run was faster
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
