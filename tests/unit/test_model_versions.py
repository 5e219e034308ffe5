"""The registered models as the command line lists them; ``test_registry`` has how they get there."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override
from retina_ray.errors import BundleError
from retina_ray.mlflow_access import connect
from retina_ray.model_versions import has_registry, list_models, show_model

pytestmark = pytest.mark.timeout(300)  # MLflow's import and first migration, on a busy machine


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("uri", [None, "sqlite:///none.db"])
def test_reading_creates_nothing(
    uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert run(["models", "list"]) == 0
    assert capsys.readouterr().out.strip() == "there is no registry here yet; `retina-ray train` registers a model"
    assert run(["models", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["models", "show", "sall"]) == 2
    assert "registered under this name: nothing" in capsys.readouterr().err
    assert everything_below(tmp_path) == []


def test_all_versions_of_all_models_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = override(RunConfig(name="run"), {"tracking.uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    client = connect(config)
    client.search_registered_models()
    assert has_registry(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(config.tracking.uri))
    assert run(["models", "list"]) == 0
    assert "no models are registered here yet" in capsys.readouterr().out
    for name, versions in (("sall-clinic", 1), ("deepmt", 2)):
        client.create_registered_model(name)
        for number in range(versions):
            client.create_model_version(name, f"/bundles/{name}/{number}")
    listed = [("deepmt", 2), ("deepmt", 1), ("sall-clinic", 1)]
    assert [(model.name, model.version) for model in list_models(config)] == listed
    assert run(["models", "list", "--json"]) == 0
    assert [(model["name"], model["version"]) for model in json.loads(capsys.readouterr().out)] == listed
    assert run(["models", "show", "deepmt/1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert datetime.fromisoformat(shown["created"]).tzinfo is not None
    search = type(client).search_registered_models
    monkeypatch.setattr(
        type(client),
        "search_registered_models",
        lambda self, *args, **more: search(self, *args, **{"max_results": 1} | more),
    )
    assert [(model.name, model.version) for model in list_models(config)] == listed
    with pytest.raises(BundleError, match="no such version"):
        show_model(config, "deepmt", "3")
