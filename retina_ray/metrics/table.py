"""The prediction table: one row per model, image and task, from which every table and figure is computed.

Training writes it, evaluation and the report read it; it can be read again without the model. What is measured from it
is in ``summary`` and ``comparison``; training ranks import neither, which would cost them seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retina_ray.errors import DataError
from retina_ray.metrics.probabilities import require_distributions

UNKNOWN_TRUTH = -1
"""The truth of an image that has no grade for the task; metrics leave it out."""

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("truth", pa.int8(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
    ]
)
"""Columns of ``predictions.parquet``; ``probabilities`` has one entry per grade of the task."""

_KEY = ("model", "task", "image_id")


@dataclass(frozen=True)
class Predictions:
    """The graded images of one model, task and split.

    Attributes:
        probabilities: (n, K) float32.
        truth: (n,) int64, in [0, K).
        groups: (n,) str, patient of each image.
        image_ids: (n,) str.
    """

    probabilities: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    groups: npt.NDArray[Any]
    image_ids: npt.NDArray[Any]


def make_table(
    probabilities: npt.NDArray[Any],
    *,
    truth: npt.NDArray[Any],
    image_ids: Sequence[str] | npt.NDArray[Any],
    group_ids: Sequence[str] | npt.NDArray[Any],
    sources: Sequence[str] | npt.NDArray[Any],
    splits: Sequence[str] | npt.NDArray[Any],
    model: str,
    task: str,
) -> pa.Table:
    """Return the checked rows of one model and task.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K), or `UNKNOWN_TRUTH`.
        image_ids: (n,).
        group_ids: (n,), patient of each image.
        sources: (n,), data set of each image.
        splits: (n,), ``train``, ``validation`` or ``test``.
        model: who predicted, such as ``single`` or ``sall``.
        task: which disease.

    Raises:
        ValueError: columns of different lengths.
        DataError: see `validate`.
    """
    num_rows, num_grades = probabilities.shape
    columns = {
        "model": [model] * num_rows,
        "image_id": [str(value) for value in image_ids],
        "group_id": [str(value) for value in group_ids],
        "source": [str(value) for value in sources],
        "split": [str(value) for value in splits],
        "task": [task] * num_rows,
        "truth": np.asarray(truth).tolist(),
    }
    for name, column in columns.items():
        if len(column) != num_rows:
            raise ValueError(f"need {num_rows} values of {name}, got {len(column)}")
    offsets = np.arange(num_rows + 1, dtype=np.int32) * num_grades
    flat = pa.array(probabilities.astype(np.float32).ravel())
    arrays = [pa.array(columns[field.name], field.type) for field in PREDICTION_SCHEMA if field.name in columns]
    lists = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return validate(pa.Table.from_arrays([*arrays, lists], schema=PREDICTION_SCHEMA))


def validate(table: pa.Table) -> pa.Table:
    """Return the table in the column order and types of `PREDICTION_SCHEMA`, or say what is wrong with it.

    Raises:
        DataError: missing columns or values, types that do not convert, probabilities that are not distributions,
            or a truth that is neither a grade nor `UNKNOWN_TRUTH`.
    """
    missing = [name for name in PREDICTION_SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError("prediction table lacks columns", ", ".join(missing), "write it with metrics.table.make_table")
    empty = [name for name in PREDICTION_SCHEMA.names if table[name].null_count]
    if empty:
        raise DataError("prediction table has empty values in", ", ".join(empty), "drop those rows where it is written")
    try:
        checked = table.select(PREDICTION_SCHEMA.names).cast(PREDICTION_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            "prediction table has other types", str(error), "write it with metrics.table.make_table"
        ) from error
    lengths = pc.list_value_length(checked["probabilities"]).to_numpy()
    truth = checked["truth"].to_numpy()
    for num_grades in np.unique(lengths):
        require_distributions(_matrix(checked["probabilities"].filter(pa.array(lengths == num_grades))))
    outside = (truth < UNKNOWN_TRUTH) | (truth >= lengths)
    if outside.any():
        raise DataError(
            "truth is not a grade of its task",
            f"{int(truth[outside][0])} of {int(lengths[outside][0])} grades",
            f"write grades from 0 and {UNKNOWN_TRUTH} for none",
        )
    return checked


def merge_shards(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows that all ranks wrote, each model, task and image once, sorted by them.

    Evaluation pads the last batch by repeating images; the first of equal rows stays. Sorting makes the table, and
    every number computed from it, independent of the number of ranks.

    Args:
        tables: one per rank, at least one.

    Raises:
        ValueError: no tables.
        DataError: see `validate`; or ranks that disagree on an image's truth.
    """
    if not tables:
        raise ValueError("no prediction tables to merge")
    table = pa.concat_tables([validate(table) for table in tables])
    numbered = table.select([*_KEY, "truth"]).append_column("row", pa.array(np.arange(table.num_rows)))
    kept = numbered.group_by(list(_KEY)).aggregate([("row", "min"), ("truth", "min"), ("truth", "max")])
    disputed = kept.filter(pc.not_equal(kept["truth_min"], kept["truth_max"]))
    if disputed.num_rows:
        raise DataError(
            "one image has two different grades in the prediction shards",
            disputed["image_id"][0].as_py(),
            "merge only shards of one run and one data set",
        )
    return table.take(kept.sort_by([(name, "ascending") for name in _KEY])["row_min"])


def pool_runs(runs: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """Return the rows of several runs as one table, such as the folds of a cross-validation.

    Args:
        runs: name and table of each, at least one; rows that one run repeats count once, see `merge_shards`.

    Raises:
        ValueError: no runs.
        DataError: see `merge_shards`; or two runs predict the same image, of which one would be dropped.
    """
    tables = [(name, merge_shards([table])) for name, table in runs]
    _require_disjoint(tables)
    return merge_shards([table for _, table in tables])


def _require_disjoint(runs: Sequence[tuple[str, pa.Table]]) -> None:
    holder: dict[tuple[str, ...], str] = {}
    for run, table in runs:
        for key in zip(*(table[column].to_pylist() for column in _KEY), strict=True):
            if key in holder:
                model, task, image = key
                raise DataError(
                    f"the runs {holder[key]} and {run} both hold predictions of {model} for {task} on image",
                    image,
                    "pool only folds with disjoint images, and evaluate each of these runs by itself",
                )
            holder[key] = run


def select(table: pa.Table, *, model: str, task: str, split: str) -> Predictions:
    """Return the graded images of one model, task and split, in the order of the table.

    Raises:
        DataError: no such rows, or rows of the task with different numbers of grades.
    """
    wanted = (
        (pc.field("model") == model)
        & (pc.field("task") == task)
        & (pc.field("split") == split)
        & (pc.field("truth") != UNKNOWN_TRUTH)
    )
    rows = table.filter(wanted)
    if rows.num_rows == 0:
        raise DataError("no graded predictions for", f"{model}, {task}, {split}", "check the names against the table")
    lengths = pc.unique(pc.list_value_length(rows["probabilities"])).to_pylist()
    if len(lengths) > 1:
        raise DataError(f"task {task} has rows of several numbers of grades", lengths, "merge only shards of one run")
    return Predictions(
        probabilities=_matrix(rows["probabilities"]),
        truth=rows["truth"].to_numpy().astype(np.int64),
        groups=np.array(rows["group_id"].to_pylist()),
        image_ids=np.array(rows["image_id"].to_pylist()),
    )


def as_screening(table: pa.Table) -> pa.Table:
    """Return the same rows with two grades: 0 as it was, and 1 for any disease (DeepMT-DR, Table II).

    Such a table can be measured where the truth says no more than whether there is disease.
    """
    truth = pc.min_element_wise(table["truth"], pa.scalar(1, pa.int8()))
    first = [row[0] for row in table["probabilities"].to_pylist()]
    pairs = pa.array([[none, 1.0 - none] for none in first], pa.list_(pa.float32()))
    columns = {"truth": truth, "probabilities": pairs}
    return validate(pa.table({name: columns.get(name, table[name]) for name in PREDICTION_SCHEMA.names}))


def as_model(table: pa.Table, name: str) -> pa.Table:
    """Return the same rows as predictions of a model of that name."""
    column = PREDICTION_SCHEMA.get_field_index("model")
    return table.set_column(column, PREDICTION_SCHEMA.field(column), pa.array([name] * len(table), pa.string()))


def graded_tasks(table: pa.Table, *, split: str) -> list[tuple[str, str]]:
    """Return the (model, task) pairs that have graded images in the split, sorted by task, then model."""
    rows = table.filter((pc.field("split") == split) & (pc.field("truth") != UNKNOWN_TRUTH))
    pairs = rows.group_by(["task", "model"]).aggregate([]).sort_by([("task", "ascending"), ("model", "ascending")])
    return list(zip(pairs["model"].to_pylist(), pairs["task"].to_pylist(), strict=True))


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return a list column of equal lengths as (n, K)."""
    if not len(column):
        return np.zeros((0, 0), dtype=np.float32)
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[np.float32] = flat.reshape(len(column), -1)
    return matrix
