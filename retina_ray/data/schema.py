"""The words of the data set: tasks and their grades, lesions, splits, and the Arrow columns of a row.

What is not here: how rows are made (``ingest``) and how shards are read and written (``shards``).
"""

from collections.abc import Collection, Iterable, Sequence

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from retina_ray.errors import ConfigError

SCHEMA_VERSION = 2
"""Version of the shard layout; a reader refuses any other."""

SPLITS = ("train", "validation", "test")

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "crossval": "validation",
    "test": "test",
    "testing": "test",
}
"""What tables call the splits, in lower case."""

SPLIT_STRENGTH = {split: strength for strength, split in enumerate(SPLITS)}
"""Of rows that may not be in two splits, those in the strongest stay: training images spoil a test, not vice versa."""

LESIONS = ("MA", "HM", "HE", "SE")
"""Planes of a lesion mask: microaneurysms, haemorrhages, hard exudates, soft exudates."""

NO_GRADE = -1
"""Stands for a missing grade wherever grades are an integer array."""


class Task(BaseModel):
    """A disease and its ordered grades, from healthy to most severe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    grades: tuple[str, ...] = Field(min_length=2)

    @property
    def num_grades(self) -> int:
        """K, the number of grades."""
        return len(self.grades)


KNOWN_TASKS = {
    task.name: task
    for task in (
        Task(name="dr", grades=("normal", "NPDR I", "NPDR II", "NPDR III", "PDR")),
        Task(name="amd", grades=("normal", "small drusen", "big drusen", "CNV")),
        Task(name="arteriosclerosis", grades=("normal", "arteriosclerosis")),
        Task(name="dme", grades=("no risk", "moderate risk", "high risk")),
    )
}
"""Tasks whose grades have names (SALL, Tables I and VII; DME as in IDRiD)."""


def task_of(name: str, num_grades: int) -> Task:
    """Return the known task of that name, or one with numbered grades.

    Args:
        name: lower-case identifier.
        num_grades: K of a task that is not known; ignored for a known one.
    """
    if name in KNOWN_TASKS:
        return KNOWN_TASKS[name]
    return Task(name=name, grades=tuple(str(grade) for grade in range(max(2, num_grades))))


def require_tasks(wanted: Iterable[str], known: Collection[str]) -> None:
    """Check that a data set has the tasks of a run.

    Raises:
        ConfigError: it lacks one.
    """
    for task in wanted:
        if task not in known:
            fix = f"set method.tasks to some of: {', '.join(known)}"
            raise ConfigError("the data set has no such task", task, fix)


def grade_column(task: str) -> str:
    """Return the Arrow column that holds the grades of a task."""
    return f"grade_{task}"


def arrow_schema(tasks: Sequence[Task]) -> pa.Schema:
    """Return the schema of a shard.

    ``image`` is a JPEG file or raw uint8 HWC bytes of ``height * width * 3``; ``mask`` is the encoding of
    ``data.masks`` for the four planes of `LESIONS`; ``sha256`` is that of the source file, in hexadecimal;
    ``crc32`` is that of ``image`` as stored, checked whenever the row is read.
    """
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("group_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("laterality", pa.string()),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("crc32", pa.uint32(), nullable=False),
            pa.field("image", pa.large_binary(), nullable=False),
            pa.field("mask", pa.large_binary()),
            *(pa.field(grade_column(task.name), pa.int8()) for task in tasks),
        ]
    )
