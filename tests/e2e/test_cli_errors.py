"""Wrong input gives one line that says what, the value and what to do, exit code 2 and no traceback."""

import json
from pathlib import Path

import pytest

from retina_ray.cli.main import run

COLUMNS = ["--columns", "image=photo,dr=grade"]

WRONG = [
    (["recipes", "show", "sal"], ["sal", "did you mean sall"]),
    (["train", "--data", "nowhere", "--set", "optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    (["train", "--data", "nowhere", "--set", "train.epochs=many"], ["train.epochs", "many", "integer"]),
    (["train", "--data", "nowhere", "--set", "optim.lr"], ["optim.lr", "path=value"]),
    (["train", "--data", "nowhere"], ["nowhere", "data synth"]),
    (["train"], ["data.path", "--data"]),
    (["train", "--config", "missing.yaml"], ["missing.yaml", "check the path"]),
    (["train", "--recipe", "nope"], ["nope", "recipes list"]),
    (["train", "--hide-grades", "most", "--data", "nowhere"], ["data.hide_grades", "most", "half"]),
    (["data", "ingest", "labels.csv", "out", "--columns", "image=image,dr=grade"], ["labels.csv"]),
    (["data", "ingest", "labels.csv", "out", "--columns", "image"], ["image", "ours=theirs"]),
    (["data", "ingest", "table.csv", "out", "--columns", "image=photo,dr=a,dr=b"], ["more than once: dr; give it one"]),
    (["data", "ingest", "labels.csv", "out", "--columns", "image=i,dr=g", "--split", "1,2"], ["1,2", "0.5,0.25,0.25"]),
    (["data", "ingest", "table.csv", "out", "--columns", "image=photo,DR=grade"], ["DR", "lower-case"]),
    (["data", "ingest", "table.csv", "out", "--columns", "image=photo,dr=grade", "--task", "dr"], ["--task", "dr"]),
    (["data", "ingest", "table.csv", "out", *COLUMNS, "--split", "nan,nan,nan"], ["nan,nan,nan", "0.5,0.25,0.25"]),
    (["data", "ingest", "table.csv", "out", *COLUMNS, "--split", "0.5,nan,0.5"], ["0.5,nan,0.5", "0.5,0.25,0.25"]),
    (["data", "ingest", "table.csv", "out", *COLUMNS, "--split", "inf,1,1"], ["inf,1,1", "0.5,0.25,0.25"]),
    (["data", "ingest", "table.csv", "out", *COLUMNS, "--seed", "-1"], ["--seed", "0"]),
    (["data", "ingest", "table.csv", "out", *COLUMNS, "--size", "5000"], ["'--size'", "to 2048: 5000. See"]),
    (["data", "ingest", "table.csv", "out", *COLUMNS, "--encoding", "gif"], ["'gif' is not", "'raw'. See"]),
    (["data", "ingest", "table.csv", "table.csv", *COLUMNS], ["table.csv", "name a folder"]),
    (["data", "ingest", "table.csv", "table.csv/a/b", *COLUMNS], ["table.csv/a/b", "may write"]),
    (["data", "ingest", "photos", "out", "--adapter", "folder", *COLUMNS], ["image=photo,dr=grade", "--columns"]),
    (["data", "ingest", "photos", "out", "--adapter", "folder", "--task", "DR"], ["DR", "lower-case"]),
    (["data", "ingest", "photos", "out", "--adapter", "eyepacs"], ["photos", "trainLabels.csv"]),
    (["data", "ingest", "photos", "out", "--adapter", "eyepacs", "--task", "dr"], ["--task", "leave it out"]),
    (["data", "ingest", "photos", "out", "--adapter", "eyepacs", *COLUMNS], ["--columns", "eyepacs"]),
    (["data", "inspect", "nowhere"], ["nowhere"]),
    (["data", "inspect", "table.csv/nowhere"], ["table.csv/nowhere"]),
    (["data", "synth", "table.csv"], ["table.csv", "name a folder"]),
    (["data", "synth", "table.csv/a/b"], ["table.csv/a/b", "may write"]),
    (["data", "synth", "mine"], ["mine", "shards/thesis.docx"]),
    (["data", "synth", "out", "--seed", "-1"], ["--seed", "0"]),
    (["data", "synth", "out", "--seed", str(2**64)], ["--seed", str(2**63 - 1)]),
    (["data", "synth", "out", "--images-per-task", str(10**12)], ["--images-per-task", "1000000"]),
    (["data", "synth", "out", "--tasks", "dr,flu"], ["flu"]),
    (["report", "nowhere"], ["nowhere", "retina-ray train"]),
    (["evaluate", "nowhere"], ["nowhere"]),
    (["predict", "nowhere", "photograph.jpg"], ["nowhere"]),
    (["models", "show", "nothing"], ["nothing"]),
    (["train", "--no-such-option"], ["--no-such-option", "--help"]),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/1/eye.jpg", "mine/shards/thesis.docx"):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    Path("table.csv").write_text("photo,grade\nphotos/1/eye.jpg,1\n", encoding="utf-8")
    code = run(arguments)
    errors = capsys.readouterr().err.strip()
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1, errors
    assert "Traceback" not in errors
    for text in expected:
        assert text in errors


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETINA_RAY_DEBUG", "1")
    assert run(["report", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_empty_data_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("image,dr\n", encoding="utf-8")
    assert run(["data", "ingest", "labels.csv", "out", "--columns", "image=image,dr=dr"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_recipes_can_be_read_by_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "sall", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["optim"] == {
        "name": "adam",
        "lr": 1e-5,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
    }


def test_the_reference_of_configuration_keys_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "keys"]) == 0
    page = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8"), (
        "run: retina-ray recipes keys > docs/configuration.md"
    )
