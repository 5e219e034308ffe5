"""Ray Train's list of checkpoints after a kill: read by Ray itself, whatever was left."""

import json
from pathlib import Path

import pytest
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2.api.config import CheckpointConfig

from retina_ray.data.store import Store
from retina_ray.orchestration.snapshot import SNAPSHOT, mend

# Ray's own reading of its list uses a deprecated name of pydantic's.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

NAMES = [f"checkpoint_2026-01-0{day}_00-00-00.000000" for day in (1, 2, 3)]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A training's folder with three whole checkpoints and other files."""
    folder = tmp_path / "runs" / "training"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "MANIFEST.json").write_text("{}")
    (folder / "artifact.json").write_text("{}")
    return folder


def known_to_ray(training: Path) -> list[str]:
    """Return what Ray Train finds when it takes the training up again, oldest first."""
    context = StorageContext(storage_path=str(training.parent), experiment_dir_name=training.name)
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), context)
    return [Path(result.checkpoint.path).name for result in manager._checkpoint_results]


def left(training: Path) -> list[str]:
    return sorted(path.name for path in training.glob("checkpoint_2*"))


def test_checkpoints_that_the_list_does_not_name_are_deleted(training: Path) -> None:
    (training / SNAPSHOT).write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": NAMES[1]}]}))
    assert mend(Store(str(training))) == [NAMES[0], NAMES[2]]
    assert left(training) == [NAMES[1]]
    assert (training / "artifact.json").exists()


def test_checkpoints_that_were_stranded_before_the_first_list_are_deleted(training: Path) -> None:
    assert mend(Store(str(training))) == NAMES
    assert known_to_ray(training) == []


@pytest.mark.parametrize("torn", ["", "{", '{"checkpoint_results": [{"checkp', "[]", "{}"])
def test_a_torn_list_is_written_anew(training: Path, torn: str) -> None:
    (training / SNAPSHOT).write_text(torn)
    (training / NAMES[2] / "MANIFEST.json").unlink()  # it was just arriving
    assert mend(Store(str(training))) == [NAMES[2]]
    assert known_to_ray(training) == left(training) == NAMES[:2]


def test_a_torn_list_of_no_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "training"
    folder.mkdir(parents=True)
    (folder / SNAPSHOT).write_text("")
    assert mend(Store(str(folder))) == []
    assert known_to_ray(folder) == []
