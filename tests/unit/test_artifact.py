"""A finished stage on storage: written last, addressed by content, refused when damaged."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retina_ray.data.store import Store
from retina_ray.errors import CheckpointError
from retina_ray.methods.base import Stage
from retina_ray.training.artifact import ARTIFACT, Artifact, pack_arrays, pack_table, read_artifact, write_artifact

STAGE = Stage("teacher-dr", "train", {"grades": {"dr": 3}, "dropout": 0.5}, model="single_task")
ARRAYS = {"dr": np.array([[1.5, np.nan], [-0.0, 3e-38]], dtype=np.float32)}
TABLE = pa.table({"model": ["a", "b"], "probabilities": [[0.25, 0.75], [1.0, 0.0]]})
FILES = {
    "logits.safetensors": pack_arrays(ARRAYS),
    "predictions.parquet": pack_table(TABLE),
    "history.json": b'[{"step": 3}]',
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "artifact"))


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return write_artifact(store, stage=STAGE, facts={"wall_s": 1.5, "damaged": []}, files=FILES)


def test_what_was_written_is_read(store: Store, artifact: Artifact) -> None:
    found = read_artifact(store)
    assert found is not None
    assert found == artifact
    assert (found.stage, found.settings) == ("teacher-dr", STAGE.settings)
    assert found.facts == {"wall_s": 1.5, "damaged": []}
    np.testing.assert_array_equal(found.arrays("logits.safetensors")["dr"], ARRAYS["dr"])
    assert found.predictions().equals(TABLE)
    assert found.history() == [{"step": 3}]


def test_nothing_there_is_no_artifact(store: Store) -> None:
    assert read_artifact(store) is None


@pytest.mark.parametrize("fails_at", range(len(FILES) + 1))
def test_an_interrupted_writer_leaves_none(store: Store, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    written: list[str] = []
    write = Store.write_bytes

    def write_or_fail(self: Store, name: str, data: bytes) -> None:
        if len(written) == fails_at:
            raise OSError(28, "No space left on device")
        written.append(name)
        write(self, name, data)

    monkeypatch.setattr(Store, "write_bytes", write_or_fail)
    with pytest.raises(OSError, match="No space"):
        write_artifact(store, stage=STAGE, facts={}, files=FILES)
    assert ARTIFACT not in written
    assert read_artifact(store) is None
    monkeypatch.undo()
    write_artifact(store, stage=STAGE, facts={}, files=FILES)
    assert read_artifact(store) is not None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["bit", "short", "empty"])
def test_a_damaged_file_is_refused_by_name(store: Store, artifact: Artifact, name: str, harm: str) -> None:
    path = store.local_path / name
    data = bytearray(path.read_bytes())
    if harm == "bit":
        data[len(data) // 2] ^= 4
    path.write_bytes({"bit": bytes(data), "short": bytes(data[:-1]), "empty": b""}[harm])
    with pytest.raises(CheckpointError, match=name):
        artifact.read(name)
    for other in FILES.keys() - {name}:
        artifact.read(other)


def test_a_file_the_manifest_does_not_name_is_not_read(store: Store, artifact: Artifact) -> None:
    store.write_bytes("weights.safetensors", b"anything")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        artifact.read("weights.safetensors")


def test_the_manifest_is_plain_json(store: Store, artifact: Artifact) -> None:
    described = json.loads(store.read_bytes(ARTIFACT))
    assert described["files"].keys() == FILES.keys()
    assert all(len(digest) == 64 for digest in described["files"].values())


def test_equal_arrays_are_equal_bytes() -> None:
    assert pack_arrays({"dr": ARRAYS["dr"].T.copy().T}) == pack_arrays(ARRAYS)
