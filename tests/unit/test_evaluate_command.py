"""``retina-ray evaluate`` pools folds, refuses what cannot be pooled, and measures as its runs were told to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from torch import Tensor

from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override, to_yaml
from retina_ray.data.batch import Batch
from retina_ray.data.store import Store
from retina_ray.metrics.summary import summarise
from retina_ray.metrics.table import make_table, merge_shards
from retina_ray.orchestration import bundle_evaluation
from retina_ray.orchestration.run_folder import CONFIG, RunFolder
from tests.bundles import SIZE, make_everything, write_dataset


def predictions(names: range, *, seed: int = 0) -> pa.Table:
    """Return a table of test images, some of which have no grade, and of one validation image of another fold."""
    rng = np.random.default_rng(seed)
    powers = np.exp(3.0 * rng.normal(size=(len(names), 3)))
    images = [f"image-{name:02d}" for name in names]
    return make_table(
        powers / powers.sum(axis=1, keepdims=True),
        truth=np.array([name % 4 - 1 for name in names]),
        image_ids=images,
        group_ids=images,
        sources=["tests"] * len(names),
        splits=["test"] * (len(names) - 1) + ["validation"],
        model="sall",
        task="dr",
    )


def write_run(folder: Path, table: pa.Table, **evaluate: Any) -> str:
    store = RunFolder(Store(str(folder)))
    changes = {f"evaluate.{name}": value for name, value in evaluate.items()}
    config = override(RunConfig(name=folder.name), {"evaluate.bootstrap": 5, **changes})
    store.store.write_bytes(CONFIG, to_yaml(config).encode())
    store.update(artifacts={})
    store.write_predictions(table)
    return str(folder)


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    code = run(["evaluate", *arguments, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return list(json.loads(printed.out))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run(["evaluate", *arguments])
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    return line


def test_folds_are_pooled_by_the_split_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The last image of each fold validates there and is tested in the next.
    tables = [predictions(range(0, 21)), predictions(range(20, 41))]
    runs = [write_run(tmp_path / f"fold-{fold}", table) for fold, table in enumerate(tables)]
    (record,) = evaluated(capsys, *runs)
    tests = merge_shards([table.slice(0, 20) for table in tables])
    (expected,) = summarise(tests, split="test", resamples=5, seed=0)
    assert record["n"] == expected.n == 30
    assert record["accuracy"] == pytest.approx(expected.metrics["accuracy"])
    assert record["confusion"] == expected.confusion
    assert record["reliability"] == expected.reliability


def test_seeds_of_one_data_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / f"seed-{seed}", predictions(range(20), seed=seed)) for seed in range(3)]
    error = refused(capsys, *runs)
    for words in (runs[0], runs[1], "image: image-00", "sall for dr", "each of these runs by itself"):
        assert words in error
    assert "both hold" in refused(capsys, runs[0], runs[0])


def test_rows_that_one_run_repeats_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = predictions(range(21))
    padded = write_run(tmp_path / "padded", pa.concat_tables([table, table.slice(0, 4)]))
    assert evaluated(capsys, padded) == evaluated(capsys, write_run(tmp_path / "plain", table))


def test_an_unknown_split_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, write_run(tmp_path / "one", predictions(range(20))), "--split", "bogus")
    assert "unknown split: bogus; choose one of train, validation, test" in error


def test_a_split_without_graded_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graded, ungraded = predictions(range(20)), predictions(range(20, 25))  # image 24, which validates, has no grade
    runs = [write_run(tmp_path / "one", graded), write_run(tmp_path / "two", ungraded)]
    assert f"no image of the train split has a grade in: {runs[0]}" in refused(capsys, runs[0], "--split", "train")
    assert f"validation split has a grade in: {runs[1]}" in refused(capsys, *runs, "--split", "validation")


def test_a_runs_own_settings_are_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = predictions(range(41))
    one = write_run(tmp_path / "one", table, bootstrap=9, level=0.6, bins=4)
    (record,) = evaluated(capsys, one)
    (expected,) = summarise(table, split="test", resamples=9, level=0.6, bins=4, seed=0)
    assert len(record["reliability"]) == 4
    assert record["ece"] == pytest.approx(expected.metrics["ece"])
    assert record["intervals"]["accuracy"] == pytest.approx(expected.intervals["accuracy"])
    (bare,) = evaluated(capsys, one, "--bootstrap", "0", "--bins", "6")
    assert bare["intervals"] == {}
    assert len(bare["reliability"]) == 6
    (wide,) = evaluated(capsys, one, "--level", "0.9")
    (expected,) = summarise(table, split="test", resamples=9, level=0.9, bins=4, seed=0)
    assert wide["intervals"]["accuracy"] == pytest.approx(expected.intervals["accuracy"])


def test_runs_must_agree_on_what_was_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "one", predictions(range(20)), bins=5)
    second = write_run(tmp_path / "two", predictions(range(20, 40)), bins=6)
    error = refused(capsys, first, second)
    for words in (first, second, "evaluate.bins: 5 and 6", "--bins"):
        assert words in error
    (record,) = evaluated(capsys, first, second, "--bins", "7")
    assert len(record["reliability"]) == 7


@pytest.mark.parametrize(("option", "value"), [("--bins", "1"), ("--level", "1"), ("--bootstrap", "-1")])
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    one = write_run(tmp_path / "one", predictions(range(20)))
    assert option.removeprefix("--") in refused(capsys, one, option, value)


def test_a_bundle_measures_another_data_set_as_its_run_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_everything(tmp_path / "data", **{"evaluate.bins": 4}).build(tmp_path / "bundle")
    write_dataset(tmp_path / "untested", size=SIZE, num_images=4)
    bundle = str(tmp_path / "bundle")
    records = evaluated(capsys, bundle, "--data", str(tmp_path / "data"))
    assert [(record["task"], record["n"], len(record["reliability"])) for record in records] == [
        ("amd", 1, 4),
        ("dr", 1, 4),
    ]
    assert "no image of the test split has a grade" in refused(capsys, bundle, "--data", str(tmp_path / "untested"))
    assert "give a single bundle" in refused(capsys, bundle, bundle, "--data", str(tmp_path / "data"))


@pytest.mark.parametrize(("global_batch", "workers", "at_once"), [(2, 0, 2), (6, 2, 3)])
def test_a_bundle_sees_as_many_images_at_once_as_a_worker_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, global_batch: int, workers: int, at_once: int
) -> None:
    settings = {"train.global_batch_size": global_batch, "runtime.workers": workers}
    bundle = make_everything(tmp_path / "data", **settings).build(tmp_path / "bundle")
    sizes: set[int] = set()
    run_over = bundle_evaluation.run_over

    def watched(loader: Any, compute: Callable[[Batch], dict[str, Tensor]], **options: Any) -> Any:
        def watching(batch: Batch) -> dict[str, Tensor]:
            sizes.add(len(batch.rows))
            return compute(batch)

        return run_over(loader, watching, **options)

    monkeypatch.setattr(bundle_evaluation, "run_over", watched)
    table = bundle_evaluation.predict_dataset(bundle, str(tmp_path / "data"), split="train")
    assert sizes == {at_once}
    assert table.num_rows == 2 * 8
