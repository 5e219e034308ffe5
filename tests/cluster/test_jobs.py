"""`retina-ray jobs` against a real cluster with a token: what is sent, followed, lost, stopped and refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_ray.config import RunConfig, to_yaml
from tests.helpers import ONE_STAGE, tiny_config
from tests.ray_nodes import Nodes, ray_nodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(head_cpus=2) as found:
        yield found


def written(config: RunConfig, nodes: Nodes) -> str:
    """Return the name of a file, in the folder where commands run, with a configuration."""
    name = f"{config.name}.yaml"
    (nodes.folder / name).write_text(to_yaml(config), encoding="utf-8")
    return name


def a_config(data: Path, storage: Path, **changes: object) -> RunConfig:
    return tiny_config(data, storage, **{**ONE_STAGE, **changes})


def jobs(nodes: Nodes, *words: str, code: int | None = 0) -> str:
    done = nodes.command("jobs", words[0], "--address", nodes.dashboard, *words[1:], code=code)
    return done.stdout if code == 0 else done.stderr


@pytest.mark.timeout(300)
def test_a_run_is_checked_sent_and_followed_to_its_end(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    file = written(a_config(data, tmp_path / "runs", name="sent", runtime__workers=1), nodes)
    done = nodes.command(
        "jobs", "submit", "--address", nodes.dashboard, "--name", "sent-1", "--", "train", "--config", file
    )
    assert "submitted sent-1" in done.stderr
    assert "epoch 2/2" in done.stdout, "its progress"
    assert f"bundle  {tmp_path}/runs/sent/bundle" in done.stdout
    assert (tmp_path / "runs" / "sent" / "bundle" / "bundle.json").exists()
    state = json.loads(jobs(nodes, "status", "sent-1", "--json"))
    assert state["status"] == "SUCCEEDED"
    assert state["exit_code"] == 0
    assert state["command"].endswith(f"train --config {file}")
    run = json.loads((tmp_path / "runs" / "sent" / "run.json").read_text())
    assert state["commit"].split()[-1] == run["environment"]["commit"], "the version of this checkout ran there"
    assert jobs(nodes, "logs", "sent-1") == done.stdout
    assert [each["id"] for each in json.loads(jobs(nodes, "list", "--json"))] == ["sent-1"], "no trace of the check"
    refused = jobs(nodes, "submit", "--name", "sent-1", "--no-check", "--", "train", "--config", file, code=2)
    assert "a job of this name exists: sent-1" in refused


@pytest.mark.timeout(200)
def test_ends_with_the_code_of_the_job(nodes: Nodes, tmp_path: Path) -> None:
    file = written(a_config(tmp_path / "nothing", tmp_path / "runs", name="failing"), nodes)
    words = ("submit", "--address", nodes.dashboard, "--name", "failing", "--no-check")
    done = nodes.command("jobs", *words, "--", "train", "--config", file, code=2)
    assert "nothing" in done.stdout, "what the command there says"
    assert "failing failed (2)" in done.stderr


def test_without_the_token_nothing_is_said(nodes: Nodes) -> None:
    stranger = Nodes(nodes.folder, {**nodes.environment, "RAY_AUTH_TOKEN": "f" * 64}, nodes.port, nodes.dashboard_port)
    done = stranger.command("jobs", "list", "--address", nodes.dashboard, code=2)
    assert "cannot reach the dashboard" in done.stderr
    assert "RAY_AUTH_MODE and the token" in done.stderr
    assert len(done.stderr.splitlines()) == 1
