"""A source held out is the test in full, and nobody who is tested has taught."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.config import RunConfig, override
from retina_ray.data.schema import SPLITS, Task
from retina_ray.data.selection import Selection, require_test_grades, select, sources_of
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import ConfigError, DataError
from retina_ray.methods import catalogue
from retina_ray.training.artifact import stage_keys
from retina_ray.training.stage import select_rows

SIZE = 32
TASKS = (Task(name="dr", grades=("none", "some")), Task(name="amd", grades=("none", "some")))

Image = tuple[str, str, str, str]
"""Source, patient, split and task of an image."""


def write(folder: Path, images: list[Image]) -> ShardedDataset:
    with ShardWriter(str(folder), tasks=TASKS, image_size=SIZE, encoding="raw", source="tests") as writer:
        for index, (source, patient, split, task) in enumerate(images):
            writer.add(
                Row(
                    image_id=f"image-{index}",
                    group_id=patient,
                    source=source,
                    split=split,
                    image=bytes(SIZE * SIZE * 3),
                    width=SIZE,
                    height=SIZE,
                    sha256=f"{index:064x}",
                    grades={task: index % 2},
                )
            )
    return ShardedDataset.open(str(folder))


def of_source(source: str, task: str = "dr", *, rows: int = 9) -> list[Image]:
    return [(source, f"{source}-{index // 2}", SPLITS[index // 2 % 3], task) for index in range(rows)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    images = of_source("a") + of_source("b") + of_source("c") + of_source("c", "amd") + of_source("b", "amd")
    return write(tmp_path_factory.mktemp("sources") / "data", images)


def splits_of(dataset: ShardedDataset, selection: Selection) -> np.ndarray:
    """Return the split of each row, empty for one that takes no part."""
    named = np.full(len(dataset), "", dtype=object)
    for split, rows in selection.rows.items():
        assert (named[rows] == "").all()
        named[rows] = split
    return named


def test_the_sources_are_named(dataset: ShardedDataset) -> None:
    assert sources_of(dataset) == {"a": ("dr",), "b": ("dr", "amd"), "c": ("dr", "amd")}


@pytest.mark.parametrize("source", ["a", "b", "c"])
def test_the_source_is_the_test_and_the_others_keep_to_training_and_validation(
    dataset: ShardedDataset, source: str
) -> None:
    named = splits_of(dataset, select(dataset, tasks=["dr"], hold_out=source))
    held = dataset.sources == source
    assert (named[held] == "test").all()
    stored = dataset.splits[~held]
    expected = np.where(stored == "validation", "validation", "train")
    np.testing.assert_array_equal(named[~held], expected)


patients = st.integers(0, 6).map("p{}".format)
images = st.tuples(st.sampled_from("abc"), patients, st.sampled_from(SPLITS), st.just("dr"))


@given(images=st.lists(images, min_size=2, max_size=25), source=st.sampled_from("abc"))
@settings(max_examples=25, deadline=None)
def test_no_patient_is_in_two_splits_even_where_sources_or_stored_splits_share_them(
    tmp_path_factory: pytest.TempPathFactory, images: list[Image], source: str
) -> None:
    # What makes any division possible at all: a patient of the source's own, one to train and one to validate.
    base = [(source, "own", "train", "dr"), ("other", "learns", "train", "dr"), ("other", "checks", "validation", "dr")]
    dataset = write(tmp_path_factory.mktemp("drawn") / "data", images + base)
    named = splits_of(dataset, select(dataset, tasks=["dr"], hold_out=source))
    for patient in set(dataset.group_ids):
        assert len(set(named[dataset.group_ids == patient]) - {""}) == 1
    left_out = named == ""
    tested = dataset.group_ids[dataset.sources == source]
    np.testing.assert_array_equal(left_out, np.isin(dataset.group_ids, tested) & (dataset.sources != source))


def test_an_unknown_source_names_those_there_are(dataset: ShardedDataset) -> None:
    with pytest.raises(ConfigError, match=r"no such source: d; set data\.hold_out to one of: a, b, c"):
        select(dataset, tasks=["dr"], hold_out="d")


def test_the_only_source_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="retina-ray data merge"):
        select(write(tmp_path / "data", of_source("a")), tasks=["dr"], hold_out="a")


def test_a_task_that_the_source_does_not_grade_is_refused(dataset: ShardedDataset, tmp_path: Path) -> None:
    some = select(dataset, tasks=["dr", "amd"], hold_out="a")
    assert len(some.graded("test", ["dr"]))
    with pytest.raises(
        DataError, match="source a that is held out has no grade for the task: amd; hold out one of b, c"
    ):
        require_test_grades(dataset, some, ["dr", "amd"], hold_out="a")
    with pytest.raises(DataError, match="held out has no grade for the task: amd"):
        select(dataset, tasks=["amd"], hold_out="a")
    alone = write(tmp_path / "data", of_source("a") + of_source("b", "amd"))
    with pytest.raises(DataError, match="without the source a, no train image has a grade for the task: dr"):
        select(alone, tasks=["dr"], hold_out="a")


def test_a_configuration_holds_out_and_does_not_deal_folds_as_well(dataset: ShardedDataset) -> None:
    base = override(RunConfig(name="base"), {"method.tasks": ["dr"], "method.synergic_labels": False})
    config = override(base, {"data.hold_out": "b"})
    assert set(dataset.sources[select_rows(config, dataset).rows["test"]]) == {"b"}
    with pytest.raises(ConfigError, match="hold_out and folds both name the test split"):
        override(config, {"data.folds": 3})
    with pytest.raises(ConfigError, match=r"data\.hold_out"):
        override(base, {"data.hold_out": ""})


def test_every_stage_depends_on_the_source_held_out() -> None:
    def keys(source: str | None) -> dict[str, str]:
        config = override(RunConfig(name="base"), {"data.hold_out": source})
        plan = catalogue.plan(config, {task.name: task for task in TASKS})
        return stage_keys(plan, config, "print", initial_weights={}, use_gpu=False)

    none, one, other = keys(None), keys("a"), keys("b")
    for stage in none:
        assert len({none[stage], one[stage], other[stage]}) == 3
