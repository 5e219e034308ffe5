"""Data sets on disk and on S3: written crash-safe, read without copies, never trusted half-written."""

import fcntl
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import simplejpeg
from moto.server import ThreadedMotoServer

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.data.masks import decode_mask, encode_mask
from retina_ray.data.node_cache import NodeCache
from retina_ray.data.schema import task_of
from retina_ray.data.shards import Row, ShardedDataset, ShardWriter
from retina_ray.data.store import Store
from retina_ray.errors import DataError

TASKS = (task_of("dr", 5), task_of("amd", 4))
SIZE = 16


def row(i: int, **changes: Any) -> Row:
    """Row i: every image differs, every third has a mask, grades of dr for even and of amd for odd rows."""
    rng = np.random.default_rng(i)
    fields: dict[str, Any] = {
        "image_id": f"image-{i}",
        "group_id": f"patient-{i // 2}",
        "source": "drawn",
        "split": ("train", "validation", "test")[i % 3],
        "image": rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8).tobytes(),
        "width": SIZE,
        "height": SIZE,
        "sha256": f"{i:064x}",
        "grades": {"dr": i % 5, "amd": None} if i % 2 == 0 else {"amd": i % 4},
        "laterality": "left" if i % 2 else None,
        "mask": None if i % 3 else encode_mask(rng.random((4, SIZE, SIZE)) < 0.1),
    }
    return Row(**fields | changes)


def write(out: str, num_rows: int = 12, **changes: Any) -> None:
    options: dict[str, Any] = {"tasks": TASKS, "image_size": SIZE, "encoding": "raw", "source": "drawn"}
    with ShardWriter(out, **options | {"shard_bytes": 10_000} | changes) as writer:
        for i in range(num_rows):
            writer.add(row(i))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(str(tmp_path / "set"))
    return tmp_path / "set"


def test_what_is_written_is_read(folder: Path) -> None:
    dataset = ShardedDataset.open(str(folder))
    assert len(dataset) == 12
    assert dataset.tasks == TASKS
    assert len(dataset.manifest.shards) > 2
    for i in range(12):
        expected = row(i)
        assert dataset.image(i) == expected.image
        assert dataset.mask(i) == expected.mask
        assert dataset.check(i)
    assert dataset.image_ids.tolist() == [f"image-{i}" for i in range(12)]
    assert dataset.group_ids.tolist() == [f"patient-{i // 2}" for i in range(12)]
    assert set(dataset.sources) == {"drawn"}
    assert dataset.splits.tolist() == ["train", "validation", "test"] * 4
    assert dataset.has_mask.tolist() == [i % 3 == 0 for i in range(12)]
    assert dataset.grades["dr"].dtype == np.int8
    assert dataset.grades["dr"].tolist() == [i % 5 if i % 2 == 0 else -1 for i in range(12)]
    assert dataset.grades["amd"].tolist() == [i % 4 if i % 2 else -1 for i in range(12)]
    assert dataset.verify() == []


def test_the_manifest_counts_what_is_there(folder: Path) -> None:
    manifest = ShardedDataset.open(str(folder)).manifest
    assert manifest.rows == 12
    assert manifest.counts["train"] == {"dr": [1, 1, 0, 0, 0], "amd": [0, 1, 0, 1]}
    for task in TASKS:
        in_all = np.sum([manifest.counts[split][task.name] for split in manifest.counts], axis=0)
        grades = ShardedDataset.open(str(folder)).grades[task.name]
        assert in_all.tolist() == np.bincount(grades[grades >= 0], minlength=task.num_grades).tolist()


def test_no_shard_is_larger_than_asked(folder: Path) -> None:
    assert all(path.stat().st_size <= 10_000 for path in (folder / "shards").iterdir())


def test_reading_an_image_copies_nothing(folder: Path) -> None:
    dataset = ShardedDataset.open(str(folder))
    first, again = (np.frombuffer(dataset.image(5), np.uint8) for _ in range(2))
    assert first.ctypes.data == again.ctypes.data


def test_reading_from_threads_gives_the_same(folder: Path) -> None:
    dataset = ShardedDataset.open(str(folder))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: bytes(dataset.image(i % 12)), range(480)))
    assert read == [row(i % 12).image for i in range(480)]


@pytest.mark.parametrize("i", [-1, 12])
def test_a_row_that_does_not_exist_is_refused(folder: Path, i: int) -> None:
    with pytest.raises(IndexError):
        ShardedDataset.open(str(folder)).image(i)


def test_a_pickle_is_small_and_opens_the_data_set_again(folder: Path) -> None:
    data = pickle.dumps(ShardedDataset.open(str(folder)))
    assert len(data) < 500
    assert pickle.loads(data).image(7) == row(7).image


def test_the_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    def fingerprint(name: str, **changes: Any) -> str:
        write(str(tmp_path / name), **changes)
        return ShardedDataset.open(str(tmp_path / name)).manifest.fingerprint

    base = fingerprint("a")
    assert fingerprint("elsewhere/b", source="other words") == base
    others = [fingerprint("c", num_rows=11), fingerprint("d", preprocessing=2), fingerprint("e", tasks=TASKS[::-1])]
    assert len({base, *others}) == 4


def test_masks_are_decoded_by_size(folder: Path) -> None:
    stored = ShardedDataset.open(str(folder)).mask(3)
    assert stored is not None
    assert decode_mask(stored, SIZE, SIZE).any()


def fail_half_way(out: str) -> None:
    with ShardWriter(out, tasks=TASKS, image_size=SIZE, encoding="raw", source="drawn", shard_bytes=4000) as writer:
        for i in range(9):
            writer.add(row(i))
        raise RuntimeError


def test_an_exception_leaves_no_data_set_and_the_next_writer_starts_clean(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_half_way(str(tmp_path))
    assert len(list((tmp_path / "shards").iterdir())) > 2
    with pytest.raises(DataError, match="not a data set"):
        ShardedDataset.open(str(tmp_path))
    write(str(tmp_path), num_rows=2)
    assert len(list((tmp_path / "shards").iterdir())) == 1
    assert len(ShardedDataset.open(str(tmp_path))) == 2


@pytest.mark.parametrize("name", ["notes.txt", "eyes.arrow", "123456.arrow", ".mine.tmp", "00000.arrow\n"])
def test_a_writer_deletes_no_file_that_is_not_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / "shards").mkdir()
    for each in ("00000.arrow", name):
        (tmp_path / "shards" / each).write_text("precious")
    with pytest.raises(DataError, match=r"other files \(shards/") as raised:
        write(str(tmp_path))
    assert raised.value.value == str(tmp_path)
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == sorted(["00000.arrow", name])


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("00007.arrow", f".00008.arrow.{'0' * 32}.tmp"):
        (tmp_path / "shards" / name).touch()
    write(str(tmp_path), num_rows=2)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.arrow"]


@pytest.mark.parametrize(("out", "message"), [("file", "is a file"), ("set", "is a file"), ("file/a/b", "written to")])
def test_a_place_that_cannot_be_written_to_is_named_before_any_row(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "set").mkdir()
    for name in ("file", "set/shards"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(DataError, match=message):
        ShardWriter(str(tmp_path / out), tasks=TASKS, image_size=SIZE, encoding="raw", source="drawn")
    assert (tmp_path / "set" / "shards").read_text() == (tmp_path / "file").read_text() == "precious"


def test_a_finished_data_set_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(DataError, match="already there"):
        write(str(folder))


def test_a_data_set_without_rows_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        write(str(tmp_path), num_rows=0)
    assert not (tmp_path / "dataset.json").exists()


def test_closing_twice_gives_the_same_manifest(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path), tasks=TASKS, image_size=SIZE, encoding="raw", source="drawn") as writer:
        writer.add(row(0))
        assert writer.close() is writer.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": "image-0"}, "occurs twice"),
        ({"split": "dev"}, "unknown split"),
        ({"grades": {"dr": 5}}, "no such grade"),
        ({"grades": {"dr": -1}}, "no such grade"),
        ({"grades": {"glaucoma": 0}}, "no such grade"),
        ({"width": 17}, "16 x 16"),
        ({"image": b"short"}, "16 x 16"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    writer = ShardWriter(str(tmp_path), tasks=TASKS, image_size=SIZE, encoding="raw", source="drawn")
    writer.add(row(0))
    with pytest.raises(DataError, match=message):
        writer.add(row(1, **changes))
    writer.add(row(1))
    assert writer.close().rows == 2


@pytest.mark.parametrize("image", [b"", b"no jpeg", simplejpeg.encode_jpeg(np.zeros((16, 17, 3), np.uint8))])
def test_only_a_jpeg_of_the_size_is_accepted_as_jpeg(tmp_path: Path, image: bytes) -> None:
    writer = ShardWriter(str(tmp_path), tasks=TASKS, image_size=SIZE, encoding="jpeg", source="drawn")
    with pytest.raises(DataError, match="not jpeg of 16 x 16"):
        writer.add(row(0, image=image))
    writer.add(row(0, image=simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))))


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(manifest | changes))


def drop_shard(folder: Path) -> None:
    (folder / "shards" / "00001.arrow").unlink()


def cut_shard(folder: Path) -> None:
    path = folder / "shards" / "00001.arrow"
    path.write_bytes(path.read_bytes()[:-1])


def zero_end_of_shard(folder: Path) -> None:
    path = folder / "shards" / "00001.arrow"
    path.write_bytes(path.read_bytes()[:-200] + bytes(200))


def name_a_file_outside(folder: Path) -> None:
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["shards"][0]["name"] = "../../etc/passwd"
    edit(folder, shards=manifest["shards"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "not a data set"),
        (lambda folder: (folder / "dataset.json").write_bytes(b"{"), "dataset.json is damaged"),
        (lambda folder: (folder / "dataset.json").write_bytes(b"[]"), "dataset.json is damaged"),
        (lambda folder: edit(folder, schema_version=99), "another schema version: 99"),
        (lambda folder: edit(folder, image_size=32), "was edited"),
        (lambda folder: edit(folder, extra=1), "damaged"),
        (lambda folder: edit(folder, rows=0), "no rows"),
        (name_a_file_outside, "damaged"),
        (drop_shard, r"shard 00001.arrow is missing: .*/shards; restore it with \d+ bytes"),
        (cut_shard, "shard 00001.arrow .* of another size"),
        (zero_end_of_shard, "00001.arrow is damaged"),
    ],
)
def test_what_is_no_sound_data_set_is_refused_by_name(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        ShardedDataset.open(str(folder))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*retina-ray data ingest"):
        ShardedDataset.open(str(tmp_path / "nowhere"))


def flip_byte_of_image(shard: bytes, i: int) -> bytes:
    position = shard.index(row(i).image) + 100
    return shard[:position] + bytes([shard[position] ^ 1]) + shard[position + 1 :]


def test_a_rotten_image_is_found_by_row_and_by_shard(folder: Path) -> None:
    path = folder / "shards" / "00000.arrow"
    path.write_bytes(flip_byte_of_image(path.read_bytes(), 1))
    dataset = ShardedDataset.open(str(folder))
    assert [i for i in range(12) if not dataset.check(i)] == [1]
    assert dataset.verify() == ["00000.arrow"] == [dataset.shard_of(1)]


def test_a_changed_label_is_found_when_the_shard_is_opened(folder: Path) -> None:
    path = folder / "shards" / "00001.arrow"
    path.write_bytes(path.read_bytes().replace(b"patient-", b"patienu-"))
    with pytest.raises(DataError, match=r"00001.arrow is damaged: grades, splits or names"):
        ShardedDataset.open(str(folder))


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=True)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    write(f"s3://bucket/{tmp_path.name}")
    return f"s3://bucket/{tmp_path.name}"


def cache_in(folder: Path) -> NodeCache:
    return NodeCache(folder / "cache", 10**9)


def downloads(log: pytest.LogCaptureFixture) -> list[str]:
    """The names of the shards that the server gave away."""
    lines = [record.getMessage() for record in log.records if record.name == "werkzeug"]
    return sorted(line.split(".arrow")[0][-5:] for line in lines if "GET" in line and ".arrow" in line)


def test_s3_is_downloaded_once_and_reads_like_the_local_set(
    bucket: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "werkzeug"):
        remote = ShardedDataset.open(bucket, cache=cache_in(tmp_path))
        again = ShardedDataset.open(bucket, cache=cache_in(tmp_path))
    local = ShardedDataset.open(str(folder))
    assert remote.manifest == local.manifest
    assert [remote.image(i) for i in range(12)] == [local.image(i) for i in range(12)]
    assert again.image(3) == pickle.loads(pickle.dumps(remote)).image(3) == local.image(3)
    assert downloads(caplog) == [shard.name[:5] for shard in local.manifest.shards]


def test_two_processes_of_a_node_download_once(bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = json.loads(Store(bucket).read_bytes("dataset.json"))
    cache = tmp_path / "cache"
    held = cache / "filling"
    held.parent.mkdir(parents=True)
    script = (
        "import sys, pathlib; from retina_ray.data.shards import ShardedDataset; "
        "from retina_ray.data.node_cache import NodeCache; print('ready', flush=True); "
        "print(len(ShardedDataset.open(sys.argv[1], cache=NodeCache(pathlib.Path(sys.argv[2]), 10**9))))"
    )
    with caplog.at_level(logging.INFO, "werkzeug"):
        with held.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            command = [sys.executable, "-c", script, bucket, str(cache)]
            processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
        answers = [process.communicate(timeout=60)[0] for process in processes]
    assert answers == ["12\n", "12\n"]
    assert downloads(caplog) == [shard["name"][:5] for shard in manifest["shards"]]


def test_a_flipped_byte_on_s3_is_refused_by_name_and_not_kept(bucket: str, tmp_path: Path) -> None:
    shards = Store(bucket).child("shards")
    shards.write_bytes("00000.arrow", flip_byte_of_image(shards.read_bytes("00000.arrow"), 1))
    with pytest.raises(DataError, match=r"shard 00000.arrow .* does not match its SHA-256"):
        ShardedDataset.open(bucket, cache=cache_in(tmp_path))
    assert not list((tmp_path / "cache").rglob("*00000*"))


def test_a_shard_that_s3_lost_is_named(bucket: str, tmp_path: Path) -> None:
    boto3.client("s3").delete_object(Bucket="bucket", Key=f"{bucket.removeprefix('s3://bucket/')}/shards/00001.arrow")
    with pytest.raises(DataError, match=r"shard 00001.arrow is missing"):
        ShardedDataset.open(bucket, cache=cache_in(tmp_path))


@pytest.mark.usefixtures("bucket")
def test_an_empty_prefix_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a data set"):
        ShardedDataset.open("s3://bucket/nothing", cache=cache_in(tmp_path))


def test_the_cache_is_where_a_run_keeps_it_by_default(
    folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fingerprint = ShardedDataset.open(bucket).manifest.fingerprint
    assert (Path(RuntimeConfig().cache).expanduser() / fingerprint / "00000.arrow").exists()
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".cache"]
