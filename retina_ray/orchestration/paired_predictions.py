"""What one bundle's model gains over another's on each test image, where the predictions of both are at hand.

A run's folder holds them beside its bundle; they are gone where the bundle was copied, uploaded, or its run deleted.
"""

from collections.abc import Mapping
from math import isclose

import pyarrow as pa
import pyarrow.compute as pc

from retina_ray.bundle_manifest import BundleManifest
from retina_ray.data.store import Store
from retina_ray.errors import DataError
from retina_ray.metrics.comparison import TaskDifference, paired_differences
from retina_ray.metrics.grading import grading_metrics
from retina_ray.metrics.table import Predictions, as_model, graded_tasks, select, validate
from retina_ray.orchestration.run_folder import BUNDLE, PREDICTIONS, RunFolder
from retina_ray.promotion import FIGURES, same_test

_SPLIT = "test"
_TOLERANCE = 1e-6
"""Of figures that are computed again: by far less than one image of any test split changes them."""


def paired_gains(
    champion: tuple[str, BundleManifest], candidate: tuple[str, BundleManifest]
) -> Mapping[str, TaskDifference]:
    """Return the candidate's gains over the champion by task, with the champion's level and number of resamples.

    Args:
        champion: where its bundle lies, and what the bundle says.
        candidate: the same.

    Returns:
        Nothing for a task whose test images are not the same in both; empty without the predictions of both.
    """
    before, after = _tests_behind(*champion), _tests_behind(*candidate)
    settings = champion[1].config["evaluate"]
    if before is None or after is None or not settings["bootstrap"]:
        return {}
    tasks = [
        task.name
        for task in champion[1].tasks
        if same_test(task, champion[1], candidate[1]) and _same_images(before, after, task.name)
    ]
    both = pa.concat_tables([as_model(before, "champion"), as_model(after, "candidate")])
    found = paired_differences(
        both.filter(pc.field("task").isin(pa.array(tasks, pa.string()))),
        baseline="champion",
        split=_SPLIT,
        resamples=settings["bootstrap"],
        level=settings["level"],
        seed=0,
    )
    return {difference.task: difference for difference in found}


def predictions_behind(bundle: str, manifest: BundleManifest) -> pa.Table | None:
    """Return what a bundle's model predicted in its run, all splits, or None where that is not at hand.

    The bundle vouches for its test figures, not for the table beside it, and names no model of that table: the one
    whose rows give these figures is looked for.

    Args:
        bundle: its address; a local one is absolute.
        manifest: the bundle's.
    """
    folder, _, last = bundle.removeprefix("file://").rpartition("/")
    if last != BUNDLE or not folder.startswith(("/", "s3://")):
        return None
    run = RunFolder(Store(folder))
    if not run.store.exists(PREDICTIONS):
        return None
    try:
        table = validate(run.predictions())
    except (DataError, pa.ArrowInvalid):  # a damaged table is none
        return None
    models = sorted({model for model, _ in graded_tasks(table, split=_SPLIT)})
    behind = next((model for model in models if _gives(table, model, manifest)), None)
    return None if behind is None else table.filter(pc.field("model") == behind)


def _tests_behind(bundle: str, manifest: BundleManifest) -> pa.Table | None:
    table = predictions_behind(bundle, manifest)
    return None if table is None else table.filter(pc.field("split") == _SPLIT)


def _gives(table: pa.Table, model: str, manifest: BundleManifest) -> bool:
    """Tell whether a model's rows give a bundle's figures on the test split."""
    pairs = graded_tasks(table, split=_SPLIT)
    return all(
        (model, task) in pairs and _has_figures(select(table, model=model, task=task, split=_SPLIT), found.metrics)
        for task, found in manifest.metrics.items()
    )


def _has_figures(rows: Predictions, stated: Mapping[str, float | None]) -> bool:
    measured = grading_metrics(rows.probabilities, rows.truth)
    return all(
        isclose(measured[name], value, abs_tol=_TOLERANCE)
        for name in FIGURES
        if (value := stated.get(name)) is not None
    )


def _same_images(left: pa.Table, right: pa.Table, task: str) -> bool:
    """Tell whether two tables name a task's test images alike and give them the same grades."""
    columns = ["image_id", "truth"]
    order = [(name, "ascending") for name in columns]
    one, other = (table.filter(pc.field("task") == task).select(columns).sort_by(order) for table in (left, right))
    return bool(one.equals(other))
