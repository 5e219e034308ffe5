"""Merged data sets hold what their members held, under names that cannot meet, whatever the order of the members."""

import hashlib
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from retina_ray.cli.main import run
from retina_ray.data.ingest import alone_in
from retina_ray.data.inspect import inspect_dataset
from retina_ray.data.manifest import MANIFEST, DatasetManifest, read_manifest
from retina_ray.data.masks import encode_mask
from retina_ray.data.merge import Member, merge
from retina_ray.data.schema import SPLITS, Task
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.errors import DataError

SIZE = 32
DR = Task(name="dr", grades=("none", "mild", "severe"))
AMD = Task(name="amd", grades=("none", "late"))


def write(folder: Path, source: str, *, tasks: tuple[Task, ...] = (DR,), rows: int = 6, **changes: Any) -> str:
    """Write a data set whose images are unlike those of any other source; ids and patients are the same in all."""
    noise = np.random.default_rng(list(source.encode()))
    form = {"image_size": SIZE, "encoding": "raw", "source": source, **changes}
    size = form["image_size"]
    with ShardWriter(str(folder), tasks=tasks, **form) as writer:
        for index in range(rows):
            image = noise.integers(0, 255, (size, size, 3), dtype=np.uint8).tobytes()
            task = tasks[index % len(tasks)]
            mask = encode_mask(noise.integers(0, 2, (4, size, size)).astype(bool)) if index % 2 else None
            writer.add(
                Row(
                    image_id=f"image-{index}",
                    group_id=f"patient-{index // 2}",
                    source=source,
                    split=SPLITS[index // 2 % 3],
                    image=image,
                    width=size,
                    height=size,
                    sha256=hashlib.sha256(image).hexdigest(),
                    grades={task.name: index % task.num_grades},
                    laterality=("left", "right", None)[index % 3],
                    mask=mask,
                )
            )
    return str(folder)


@pytest.fixture
def members(tmp_path: Path) -> list[Member]:
    return [
        Member(write(tmp_path / "a", "alpha")),
        Member(write(tmp_path / "b", "beta", tasks=(AMD, DR), rows=9)),
        Member(write(tmp_path / "c", "alpha ", rows=4), name="gamma"),
    ]


def row_of(dataset: ShardedDataset, i: int) -> list[Any]:
    """Return all that a row holds but its names and its source."""
    grades = {task: int(values[i]) for task, values in dataset.grades.items() if values[i] >= 0}
    stored = [bytes(dataset.image(i)), dataset.mask(i), dataset.source_sha256(np.array([i]))]
    return [str(dataset.splits[i]), str(dataset.lateralities[i]), grades, *stored]


def test_every_row_is_there_under_a_name_of_its_set(members: list[Member], tmp_path: Path) -> None:
    manifest = merge(members, str(tmp_path / "out"))
    merged = ShardedDataset.open(str(tmp_path / "out"))
    assert merged.manifest == manifest
    assert manifest.rows == len(merged) == 6 + 9 + 4
    assert {task.name for task in merged.tasks} == {"dr", "amd"}
    assert manifest.source == "alpha, beta, gamma"
    place = {name: i for i, name in enumerate(merged.image_ids.tolist())}
    for member, name in zip(members, ("alpha", "beta", "gamma"), strict=True):
        dataset = ShardedDataset.open(member.path)
        for i in range(len(dataset)):
            at = place[f"{name}/{dataset.image_ids[i]}"]
            assert row_of(merged, at) == row_of(dataset, i)
            assert merged.check(at)
            assert merged.group_ids[at] == f"{name}/{dataset.group_ids[i]}"
            assert merged.sources[at] == name
    report = inspect_dataset(merged)
    assert (report.damaged_shards, report.leaking_groups, report.duplicates) == ((), (), ())


def test_the_order_and_the_place_of_the_members_play_no_part(members: list[Member], tmp_path: Path) -> None:
    found = set()
    for number, order in enumerate(permutations(members)):
        found.add(merge(list(order), str(tmp_path / f"out-{number}")).fingerprint)
    (tmp_path / "b").rename(tmp_path / "moved")
    moved = [members[0], Member(str(tmp_path / "moved")), members[2]]
    found.add(merge(moved, str(tmp_path / "out-moved")).fingerprint)
    assert len(found) == 1


def test_sources_of_one_set_keep_sharing_their_patients(tmp_path: Path) -> None:
    write(tmp_path / "a", "alpha")
    write(tmp_path / "b", "beta")
    merge([Member(str(tmp_path / "a")), Member(str(tmp_path / "b"))], str(tmp_path / "two"))
    merge([Member(str(tmp_path / "two")), Member(write(tmp_path / "c", "gamma"))], str(tmp_path / "three"))
    three = ShardedDataset.open(str(tmp_path / "three"))
    assert set(three.sources) == {"alpha", "beta", "gamma"}
    assert {name.partition("/")[0] for name in three.group_ids.tolist()} == {"alpha+beta", "gamma"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"image_size": 48}, ["differ in image_size: 32 and 48", "--size"]),
        ({"encoding": "jpeg"}, ["differ in encoding"]),
        ({"preprocessing": 99}, ["differ in preprocessing", "with this release"]),
        ({"tasks": (Task(name="dr", grades=("no", "yes")),)}, ["grades of task dr differently", "no, yes"]),
    ],
)
def test_sets_that_differ_are_refused_by_name(tmp_path: Path, other: dict[str, Any], words: list[str]) -> None:
    if "encoding" in other:
        from retina_ray.data.synthetic import write_synthetic

        write_synthetic(str(tmp_path / "b"), tasks=("dr",), images_per_task=20, image_size=SIZE, seed=0)
    else:
        write(tmp_path / "b", "beta", **other)
    with pytest.raises(DataError) as refused:
        merge([Member(write(tmp_path / "a", "alpha")), Member(str(tmp_path / "b"))], str(tmp_path / "out"))
    for word in (str(tmp_path / "a"), str(tmp_path / "b"), *words):
        assert word in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_sets_of_one_source_need_names(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", "site"), write(tmp_path / "b", "site", rows=4)]
    with pytest.raises(DataError, match=r"call their source the same: site; tell them apart: write NAME="):
        merge([Member(path) for path in paths], str(tmp_path / "out"))
    with pytest.raises(DataError, match="call their source the same: one"):
        merge([Member(path, name="one") for path in paths], str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"a / in its name: a/b; write NAME="):
        merge([Member(write(tmp_path / "c", "a/b")), Member(paths[0])], str(tmp_path / "out"))


def test_a_photograph_in_two_sets_is_refused_by_name(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", "site"), write(tmp_path / "b", "site", rows=4)]  # the first four are the same
    with pytest.raises(DataError) as refused:
        merge([Member(paths[0], "one"), Member(paths[1], "two")], str(tmp_path / "out"))
    for word in ("4 photograph(s)", f"image-0 of {paths[0]} is image-0 of {paths[1]}", ", ..."):
        assert word in str(refused.value)


def test_a_damaged_member_is_named_before_anything_is_written(members: list[Member], tmp_path: Path) -> None:
    shard = Path(members[1].path) / "shards" / "00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"shards of .*b are damaged: 00000\.arrow"):
        merge(members, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_merge_that_was_killed_left_no_data_set_and_is_started_again(members: list[Member], tmp_path: Path) -> None:
    expected = merge(members, str(tmp_path / "whole"))
    out = tmp_path / "out"

    def die(phase: str, done: int, total: int) -> None:
        if phase == "writing" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(members, str(out), progress=die)
    assert not (out / MANIFEST).exists()
    (out / "shards").mkdir(exist_ok=True)
    (out / "shards" / "00007.arrow").write_bytes(b"left over")
    assert merge(members, str(out)) == expected
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "shards"]
    assert [path.name for path in (out / "shards").iterdir()] == ["00000.arrow"]


def test_a_data_set_is_replaced_only_when_told_to(members: list[Member], tmp_path: Path) -> None:
    out = write(tmp_path / "out", "old")
    before = read_manifest(Store(out))
    with pytest.raises(DataError, match="already there"):
        merge(members, out)
    with pytest.raises(DataError, match="into itself"):
        merge([*members, Member(out)], out, overwrite=True)
    assert read_manifest(Store(out)) == before
    assert read_manifest(Store(out)) != merge(members, out, overwrite=True) == read_manifest(Store(out))


def test_what_others_write_is_left_alone(members: list[Member], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with alone_in(Store(str(out))), pytest.raises(DataError, match="another ingest is writing"):
        merge(members, str(out))
    (out / "parts" / "000000-0123456789abcdef.arrow").write_bytes(b"hours of work")
    with pytest.raises(DataError, match="an ingest has begun there"):
        merge(members, str(out), overwrite=True)
    assert (out / "parts" / "000000-0123456789abcdef.arrow").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"other files \(thesis\.txt\)"):
        merge(members, str(tmp_path / "notes"), overwrite=True)


def test_the_command_takes_names_before_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", "site")
    write(tmp_path / "b=c", "other")
    assert run(["data", "merge", "north=a", "./b=c", "out", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("path") == "out"
    assert DatasetManifest.model_validate(printed) == read_manifest(Store(str(tmp_path / "out")))
    assert printed["source"] == "north, other"
    assert run(["data", "merge", "a", "lonely"]) == 2
    assert "two data sets or more" in capsys.readouterr().err
    assert run(["data", "merge", "a", "nowhere", "out2"]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_sets_on_s3_are_merged_there(members: list[Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # of the cache of shards
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="bucket")
        local = merge(members, str(tmp_path / "local"))
        away = Store("s3://bucket/away")
        for name in ("dataset.json", "shards/00000.arrow"):
            away.upload(Path(members[0].path) / name, name)
        moved = [Member(away.uri), *members[1:]]
        assert merge(moved, "s3://bucket/merged") == local
        assert Store("s3://bucket/merged").list() == ["dataset.json", "shards"]
        assert ShardedDataset.open("s3://bucket/merged").verify() == []
        with pytest.raises(DataError, match="already there"):
            merge(moved, "s3://bucket/merged")
        assert merge(moved, "s3://bucket/merged", overwrite=True) == local
    finally:
        server.stop()
