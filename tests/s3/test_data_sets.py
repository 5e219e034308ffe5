"""Data sets from and to a real S3 server: ingest, its interruption, the cache of a node, the command line."""

import json
from pathlib import Path

import pytest

from retina_ray.cli.main import run
from retina_ray.data.node_cache import NodeCache
from retina_ray.data.parts import PART_ROWS
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.sources.csv_table import read_csv
from retina_ray.data.sources.files import source_path
from retina_ray.data.sources.folder import read_folder
from retina_ray.data.store import Store
from retina_ray.errors import DataError
from tests.clinic import SIZE, made, photograph, sample, tree
from tests.s3.faults import Fault, Proxy

COLUMNS = {"image": "image", "dr": "dr", "group": "group"}


def uploaded(bucket: str, folder: Path, number: int) -> str:
    """Photographs and their table, here and on S3; the address of the latter."""
    rows = sample(folder, number)
    lines = ["image,dr,group", *(f"{row.image.name},{row.grades['dr']},{row.group_id}" for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines))
    store = Store(f"s3://{bucket}/source")
    for file in folder.iterdir():
        store.upload(file, file.name)
    return f"s3://{bucket}/source/labels.csv"


def test_from_s3_to_s3_is_the_same_as_from_disk_to_disk(bucket: str, tmp_path: Path) -> None:
    address = uploaded(bucket, tmp_path / "labels", PART_ROWS + 4)
    here = made(read_csv(tmp_path / "labels" / "labels.csv", columns=COLUMNS), tmp_path / "here")
    rows = read_csv(source_path(address), columns=COLUMNS)
    there = made(rows, f"s3://{bucket}/out")
    assert there == here
    store = Store(f"s3://{bucket}/out")
    assert store.list() == ["dataset.json", "quarantine.csv", "shards"]
    assert store.read_bytes("dataset.json") == (tmp_path / "here/dataset.json").read_bytes()
    assert store.read_bytes("shards/00000.arrow") == (tmp_path / "here/shards/00000.arrow").read_bytes()


def test_a_contact_sheet_goes_to_s3(bucket: str, tmp_path: Path) -> None:
    made(sample(tmp_path / "in", 4), tmp_path / "set")
    assert run(["data", "inspect", str(tmp_path / "set"), "--sheet", f"s3://{bucket}/looks/sheet.png"]) == 0
    assert Store(f"s3://{bucket}/looks").read_bytes("sheet.png").startswith(b"\x89PNG")


def test_an_interrupted_ingest_on_s3_goes_on(bucket: str, tmp_path: Path) -> None:
    address = uploaded(bucket, tmp_path / "labels", 2 * PART_ROWS + 4)
    rows = read_csv(source_path(address), columns=COLUMNS)
    whole = made(rows, tmp_path / "whole")

    class Killed(Exception):  # noqa: N818
        pass

    def killed(function, parts):
        yield function(parts[0])
        raise Killed

    out = f"s3://{bucket}/out"
    with pytest.raises(Killed):
        made(rows, out, work=killed)
    parts = Store(out).child("parts")
    (first,) = parts.list()
    time = parts.versions()[first]
    seen = []

    def watched(function, parts_to_make):
        for part in parts_to_make:
            yield function(part)
        seen.append(parts.versions()[first])

    assert made(rows, out, work=watched) == whole
    assert seen == [time]
    assert Store(out).child("parts").list() == []


def test_folders_on_s3_are_read(bucket: str) -> None:
    store = Store(f"s3://{bucket}/set")
    for place in ("dr/0/a.jpg", "dr/3/b.JPG", "dr/notes.txt"):
        store.write_bytes(place, photograph(1))
    rows = read_folder(source_path(f"s3://{bucket}/set"))
    assert [(row.image_id, row.grades, row.source) for row in rows] == [
        ("dr/0/a.jpg", {"dr": 0}, "set"),
        ("dr/3/b.JPG", {"dr": 3}, "set"),
    ]


def test_faults_while_ingesting_and_reading_change_nothing(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    address = uploaded(bucket, tmp_path / "labels", 12)
    proxy.faults = [
        Fault("status", "GET", "eye_03", times=2),
        Fault("drop", "GET", "eye_05"),
        Fault("truncate", "GET", "eye_07"),
        Fault("status", "PUT", "parts", code=500),
        Fault("drop_after", "PUT", "shards"),
        Fault("drop_after", "PUT", "dataset.json"),
        Fault("flip", "GET", "shards/00000"),
    ]
    made(read_csv(source_path(address), columns=COLUMNS), f"s3://{bucket}/out")
    remote = ShardedDataset.open(f"s3://{bucket}/out", cache=NodeCache(tmp_path / "cache", 10**9))
    assert [fault.kind for fault in proxy.faults if fault.hits < fault.times] == []
    made(read_csv(tmp_path / "labels" / "labels.csv", columns=COLUMNS), tmp_path / "here")
    local = ShardedDataset.open(str(tmp_path / "here"))
    assert remote.manifest == local.manifest
    assert [bytes(remote.image(row)) for row in range(12)] == [bytes(local.image(row)) for row in range(12)]


def test_the_command_line_reads_and_writes_s3(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    address = uploaded(bucket, tmp_path / "labels", 12)
    out = f"s3://{bucket}/out"
    columns = ",".join(f"{ours}={theirs}" for ours, theirs in COLUMNS.items())
    command = ["data", "ingest", address, out, "--columns", columns, "--size", str(SIZE), "--workers", "1"]
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_out"] == 12
    assert run(["data", "inspect", out]) == 0
    assert f"{out}: 12 images of {SIZE} px" in capsys.readouterr().out
    assert run(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["data", "ingest", f"s3://{bucket}/nothing.csv", out, "--columns", columns]) == 2
    assert f"s3://{bucket}/nothing.csv" in capsys.readouterr().err


def test_a_table_whose_photographs_lie_elsewhere_is_named(bucket: str) -> None:
    store = Store(f"s3://{bucket}/lonely")
    store.write_bytes("labels.csv", b"image,dr,group\na.jpg,1,p\n")
    with pytest.raises(DataError, match=rf"none of the 1 images .*s3://{bucket}/lonely/a.jpg"):
        read_csv(source_path(f"s3://{bucket}/lonely/labels.csv"), columns=COLUMNS)


def test_two_data_sets_do_not_share_what_they_cache(bucket: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        made(sample(tmp_path / name, 4 if name == "one" else 6), f"s3://{bucket}/{name}")
    cache = NodeCache(tmp_path / "cache", 10**9)
    one, two = (ShardedDataset.open(f"s3://{bucket}/{name}", cache=cache) for name in ("one", "two"))
    assert (len(one), len(two)) == (4, 6)
    assert len([path for path in tree(tmp_path / "cache") if path.endswith(".arrow")]) == 2
