"""What is refused before anything is started: a data set that a stage could not learn from."""

from pathlib import Path

import pytest

from retina_ray.config import RunConfig, override
from retina_ray.errors import DataError
from retina_ray.orchestration.preparation import plan_run
from tests.deepmt import SIDE, tiny


def a_config(data: Path, folder: Path, **changes: object) -> RunConfig:
    return override(tiny({"data.path": str(data), "runtime.storage": str(folder), "method.scale": 2}), changes)


def test_lesions_that_nobody_drew_are_missed_before_the_start(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training image has a lesion mask: restoration"):
        plan_run(a_config(data, tmp_path))
    without = {"method.segmentation.mode": "none", "method.evidence.map": "none"}
    assert plan_run(a_config(data, tmp_path, **without)).plan.stages


def test_images_are_not_restored_to_more_pixels_than_there_were(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"smaller images than are to be restored: {SIDE} px, not {2 * SIDE}"):
        plan_run(a_config(data, tmp_path, **{"data.image_size": 2 * SIDE}))
    assert list(tmp_path.iterdir()) == []
