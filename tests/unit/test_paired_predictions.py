"""Two runs' predictions are compared in pairs where they are at hand, are what the bundles state, and name the same."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from retina_ray.bundle import Bundle
from retina_ray.bundle_manifest import BundleManifest
from retina_ray.data.store import Store
from retina_ray.metrics.summary import summarise
from retina_ray.orchestration.paired_predictions import paired_gains
from retina_ray.orchestration.run_folder import BUNDLE, PREDICTIONS, RunFolder
from tests.bundles import Made, make_everything, worsened


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_everything(tmp_path_factory.mktemp("dataset"), **{"evaluate.bootstrap": 50})


@pytest.fixture
def runs(made: Made, tmp_path: Path) -> list[Path]:
    """The folders of two runs, the second of which errs on five more images of each task."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, table in zip(folders, (made.predictions, worsened(made.predictions, 5)), strict=True):
        RunFolder(Store(str(folder))).write_predictions(table)
        summaries = summarise(table, split="test", resamples=50, seed=0)
        made.build(folder / BUNDLE, predictions=table, summaries=summaries)
    return folders


def side(run: Path, **changes: object) -> tuple[str, BundleManifest]:
    return str(run / BUNDLE), Bundle.load(run / BUNDLE).manifest.model_copy(update=changes)


def test_the_gain_is_that_of_the_bundles_model_on_the_same_images(runs: list[Path]) -> None:
    gains = paired_gains(side(runs[0]), side(runs[1]))
    assert gains.keys() == {"dr", "amd"}
    for gain in gains.values():
        assert (gain.model, gain.baseline, gain.n) == ("candidate", "champion", 60)
        assert gain.metrics["accuracy"] == pytest.approx(-5 / 60)
        low, high = gain.intervals["accuracy"]
        assert low < gain.metrics["accuracy"] < high < 0
    back = paired_gains(side(runs[1]), (f"file://{runs[0]}/{BUNDLE}", side(runs[0])[1]))
    assert back["dr"].metrics["accuracy"] == pytest.approx(5 / 60)


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    def act(run: Path) -> None:
        folder = RunFolder(Store(str(run)))
        folder.write_predictions(change(folder.predictions()))

    return act


def rename(table: pa.Table) -> pa.Table:
    names = pa.array([f"{name}-again" for name in table["image_id"].to_pylist()])
    return table.set_column(table.column_names.index("image_id"), "image_id", names)


@pytest.mark.parametrize(
    "harm",
    [
        lambda run: (run / PREDICTIONS).unlink(),
        lambda run: (run / PREDICTIONS).write_bytes(b"PAR1"),
        rewrite(lambda table: table.drop(["truth"])),
        rewrite(lambda table: worsened(table, 20)),
        rewrite(lambda table: table.filter(pc.field("split") == "validation")),
        rewrite(rename),
    ],
    ids=["gone", "damaged", "a column less", "of other figures", "of another split", "other names"],
)
@pytest.mark.parametrize("which", [0, 1])
def test_without_the_right_predictions_of_both_there_is_none(
    runs: list[Path], harm: Callable[[Path], object], which: int
) -> None:
    harm(runs[which])
    assert paired_gains(side(runs[0]), side(runs[1])) == {}


def test_a_bundle_that_was_copied_has_no_run(runs: list[Path], tmp_path: Path) -> None:
    copy = Bundle.load(runs[0] / BUNDLE).copy_to(Store(str(tmp_path / "copy")))
    assert paired_gains((copy.store.uri, copy.manifest), side(runs[1])) == {}
    assert paired_gains(("mlflow-artifacts:/1/2/artifacts/bundle", copy.manifest), side(runs[1])) == {}


def test_only_tasks_with_the_same_test_images_are_compared(runs: list[Path]) -> None:
    manifest = side(runs[1])[1]
    metrics = {**manifest.metrics, "dr": manifest.metrics["dr"].model_copy(update={"test_fingerprint": "f" * 64})}
    assert paired_gains(side(runs[0]), side(runs[1], metrics=metrics)).keys() == {"amd"}


def test_without_resamples_there_is_no_interval_to_decide_by(runs: list[Path]) -> None:
    config = {**side(runs[0])[1].config, "evaluate": {"bootstrap": 0, "level": 0.95}}
    assert paired_gains(side(runs[0], config=config), side(runs[1])) == {}
