"""A search's report shows its trials as they are, at any time, and survives hostile names and missing parts."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from retina_ray.cli.main import run as command
from retina_ray.data.store import Store
from retina_ray.metrics.grading import METRICS
from retina_ray.metrics.json_text import json_text
from retina_ray.metrics.summary import TaskSummary, as_record, from_record
from retina_ray.orchestration.run_folder import METRICS as METRICS_FILE
from retina_ray.orchestration.run_folder import RUN
from retina_ray.orchestration.search_folder import SearchFolder
from retina_ray.orchestration.search_report import gather, report_search
from retina_ray.report import search_figures
from retina_ray.report.search_page import trial_rows
from retina_ray.search.goals import Goal
from tests.unit.test_report import HOSTILE, Tags
from tests.written_search import ACCURACY, ECE, EPOCHS, figures, mixed, suggest, write_search


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchFolder:
    return write_search(tmp_path_factory.mktemp("search"), trials=24, planned=30, fate=mixed)


@pytest.fixture(scope="module")
def page(search: SearchFolder) -> str:
    return Path(report_search(search)).read_text(encoding="utf-8")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests of the page's words the seconds that its figures take."""
    monkeypatch.setattr("retina_ray.report.search_sections.figure_uri", lambda figure: "data:,")


def words(page: str) -> str:
    return " ".join("".join(f" {part}" for part in Tags(page).words).split())


def text_of(search: SearchFolder) -> str:
    return words(Path(report_search(search)).read_text(encoding="utf-8"))


def titles(page: str) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>\s*<figcaption>", page)


def test_page_needs_nothing_else_and_describes_its_images(page: str) -> None:
    tags = Tags(page).tags
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == 6
    for attrs in images:
        assert str(attrs["src"]).startswith("data:image/png;base64,")
        assert len(str(attrs["alt"])) > 40
    assert any("last validation accuracy (%) of 22 trials" in str(attrs["alt"]) for attrs in images)
    assert re.search(r"https?://|@import|url\(", re.sub(r"data:[^\"]+", "", page)) is None


def test_page_tells_what_was_searched_and_how_far_it_is(search: SearchFolder, page: str) -> None:
    text = words(page)
    best = gather(search).winner
    for shown in (
        "Search space sall",
        "Goal largest validation accuracy",
        "Trials 24 of 30: 13 complete, 7 stopped, 2 running, 2 failed",
        "Scheduler ASHA",
        f"Best so far: trial {best}",
        "Running, or interrupted until the search is continued with --resume: trials 22, 23.",
        "Not begun yet: 6 of 30 trials.",
        "No winner has been trained to its end and tested yet.",
        "Failed: trials 5, 17 (too few graded images of a task: amd (add some)).",
        "teacher-dr 0 22 student 22 0",
        f"name: tiny-trial-{best:05}",
    ):
        assert shown in text, shown
    assert titles(page) == [
        "Optimisation history",
        "Learning curves",
        "Parallel coordinates",
        "Importance of the parameters",
        "Values against each parameter",
        "Values of each task against each parameter",
    ]


def test_the_table_holds_every_trial_the_best_first_and_the_failed_last(search: SearchFolder) -> None:
    data = gather(search)
    rows = trial_rows(data)
    first = next(trial for trial in data.trials if trial.number == data.winner)
    assert [str(name) for name in rows[0]][:7] == [
        *("Trial", "State", "Accuracy (%)", "Accuracy, DR (%)", "Accuracy, AMD (%)"),
        *("Epochs", "Seconds"),
    ]
    assert (rows[0]["Trial"].text, rows[0]["Trial"].interval) == (str(first.number), "best so far")
    assert rows[0]["Accuracy (%)"].text == f"{100.0 * (first.value('accuracy') or 0.0):.2f}"
    assert (rows[0]["Epochs"].text, rows[0]["Seconds"].text) == (str(EPOCHS), "38")
    values = [float(row["Accuracy (%)"].text) for row in rows[:-2]]
    assert len(rows) == 24
    assert values == sorted(values, reverse=True)
    for row, number in zip(rows[-2:], ("5", "17"), strict=True):
        assert [row[name].text for name in ("Trial", "State", "Accuracy (%)", "Epochs")] == [number, "failed", "", ""]
        assert row["Reason of failure"].text.startswith("too few graded images")
    names = {re.sub("<wbr>", "", str(name)) for name in rows[0]}
    assert {"temperature", "ratio.dr", "loss_weight.amd", "student.lr"} <= names


def test_two_goals_are_shown_each_and_against_each_other(tmp_path: Path) -> None:
    search = write_search(tmp_path, trials=8, goals=(ACCURACY, ECE), fate=lambda n: "failed" if n == 2 else "complete")
    page = Path(report_search(search)).read_text(encoding="utf-8")
    data, text = gather(search), words(page)
    assert "Goals largest validation accuracy, least validation ECE" in text
    assert titles(page)[-1] == "Pareto front"
    headings = re.findall(r"<h4>(.*?)</h4>", page)
    each = ["validation accuracy (%)", "validation ECE (%)"]
    assert headings == [*each, *each, *each, "validation accuracy (%)"]  # history, curves, slices, tasks
    values = {
        trial.number: (trial.value("accuracy"), trial.value("ece"))
        for trial in data.trials
        if trial.state == "complete"
    }
    unbeaten = [
        number
        for number, (accuracy, ece) in values.items()
        if not any(a >= accuracy and e <= ece and (a, e) != (accuracy, ece) for a, e in values.values())  # type: ignore[operator]
    ]
    assert data.front == unbeaten
    assert data.winner == max(unbeaten, key=lambda number: values[number][0] or 0.0)
    marks = {row["Trial"].text: row["Trial"].interval for row in trial_rows(data)}
    assert {int(number) for number, mark in marks.items() if mark} == set(unbeaten)
    (axes,) = search_figures.pareto(data.trials, data.goals, data.front).axes
    assert axes.get_xlabel() == "validation accuracy (%), more is better"
    assert axes.get_ylabel() == "validation ECE (%), less is better"
    assert sorted(text.get_text() for text in axes.texts) == sorted(map(str, unbeaten))


@pytest.mark.usefixtures("no_pictures")
def test_a_search_that_has_begun_nothing_has_a_page(tmp_path: Path) -> None:
    text = text_of(write_search(tmp_path, trials=0, planned=8))
    assert "Trials 0 of 8" in text
    assert "No trial was begun yet." in text
    assert "Left out: optimisation history (no trial has a value)." in text
    assert "Configuration" not in text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("goals", [(ACCURACY,), (ACCURACY, ECE)])
def test_a_search_whose_trials_reported_nothing_has_a_page(tmp_path: Path, goals: tuple[Goal, ...]) -> None:
    search = write_search(tmp_path, trials=2, goals=goals, fate=lambda n: ("running", "failed")[n])  # type: ignore[return-value]
    text = text_of(search)
    assert "2 of 2: 1 running, 1 failed" in text
    for title in ("optimisation history", "learning curves", "values against each parameter"):
        assert f"Left out: {title} (no trial has a value)." in text
    assert "Left out: parallel coordinates (0 trials with a value, 2 are needed)." in text
    assert ("Left out: pareto front" in text) is (len(goals) > 1)
    assert "Best so far" not in text


def test_one_finished_trial_is_drawn(tmp_path: Path) -> None:
    search = write_search(tmp_path, trials=1)
    page = Path(report_search(search)).read_text(encoding="utf-8")
    assert titles(page) == [
        "Optimisation history",
        "Learning curves",
        "Values against each parameter",
        "Values of each task against each parameter",
    ]
    text = words(page)
    assert "Left out: parallel coordinates (1 trial with a value, 2 are needed)." in text
    assert "Left out: importance of the parameters (1 trial completed or stopped" in text
    assert "Best so far: trial 0" in text
    assert "Median" not in text


@pytest.mark.usefixtures("no_pictures")
def test_a_space_without_parameters_has_a_page(tmp_path: Path) -> None:
    text = text_of(write_search(tmp_path, trials=2, space=lambda trial: {}, reached=lambda *_: {"accuracy": 0.5}))
    assert "Left out: values against each parameter (the space varies no parameter)." in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    def hostile(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_categorical(HOSTILE, [HOSTILE, "b"])
        return suggest(trial)

    def reached(params: Any, number: int, epoch: int) -> dict[str, float | None]:
        values = figures(params, number, epoch)
        return values | {HOSTILE: values["accuracy"]}

    search = write_search(
        tmp_path,
        trials=17,
        goals=(Goal(HOSTILE, "max"), ACCURACY),
        fate=lambda number: "failed" if number == 0 else "complete",
        reason=HOSTILE,
        space=hostile,
        reached=reached,
        stages={HOSTILE: "trained"},
    )
    search.update(space=HOSTILE, environment={HOSTILE: HOSTILE})
    parsed = Tags(Path(report_search(search)).read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)
    text = "".join(parsed.words)
    assert text.count(HOSTILE) >= 8


@pytest.mark.usefixtures("no_pictures")
def test_folds_are_named(tmp_path: Path) -> None:
    search = write_search(tmp_path, trials=2, stages={"student/0": "trained", "student/1": "reused"})
    search.update(cv=3)
    text = text_of(search)
    assert "Cross-validation 3 folds" in text
    assert "Folds" in text
    assert "student 2 2" in text


def test_a_trial_of_fewer_folds_is_not_the_best(tmp_path: Path) -> None:
    def reached(params: Mapping[str, Any], number: int, epoch: int) -> dict[str, float | None]:
        return {"accuracy": 0.9 if number == 1 else 0.5 + number / 100}

    search = write_search(tmp_path, trials=3, reached=reached, fate=lambda n: "stopped" if n == 1 else "complete")
    assert (gather(search).winner, gather(search).front) == (1, [1])
    search.update(cv=EPOCHS)
    assert (gather(search).winner, gather(search).front) == (2, [2])


def summary() -> TaskSummary:
    metrics = dict.fromkeys(METRICS, 0.5) | {"accuracy": 0.8123, "auroc": math.nan}
    return TaskSummary("sall", "dr", 11, metrics, {"accuracy": (0.7, 0.9), "auroc": (math.nan, math.nan)})


def publish(search: SearchFolder, *, winner: int, with_report: bool) -> Store:
    """Write what the training of a winner leaves."""
    run = Store(str(search.store.local_path.parent)).child(f"tiny-trial-{winner:05}")
    run.write_bytes(RUN, b"{}")
    run.write_bytes(METRICS_FILE, json_text([as_record(summary())]).encode())
    if with_report:
        run.write_bytes("report.html", b"")
    search.update(finished=True, winner=winner, run=run.uri, bundle=f"{run.uri}/bundle", model_version=3)
    return run


@pytest.mark.usefixtures("no_pictures")
def test_a_trained_winner_is_shown_with_its_test_figures(tmp_path: Path) -> None:
    search = write_search(tmp_path, trials=3)
    best = gather(search).winner
    assert best is not None
    run = publish(search, winner=best, with_report=True)
    page = Path(report_search(search)).read_text(encoding="utf-8")
    text = words(page)
    assert f"Winner: trial {best}" in text
    assert f"Winner's run {run.uri}" in text
    assert f'<a href="../tiny-trial-{best:05}/report.html">' in page
    assert "Model version 3" in text
    assert "DR SALL 11 81.2 70.0 to 90.0" in text
    assert "Below each value its 95% interval" in text
    assert "No winner" not in text
    assert trial_rows(gather(search))[0]["Trial"].interval == "winner"


@pytest.mark.usefixtures("no_pictures")
def test_a_winner_without_report_or_run_says_what_is_missing(tmp_path: Path) -> None:
    search = write_search(tmp_path, trials=3)
    best = gather(search).winner
    assert best is not None
    run = publish(search, winner=best, with_report=False)
    assert f"not written yet: retina-ray report {run.uri}" in text_of(search)
    run.local_path.joinpath(RUN).unlink()
    assert f"(its run is not at {run.uri} any more)" in text_of(search)


@pytest.mark.usefixtures("no_pictures")
def test_a_trial_that_beats_the_trained_winner_is_named(tmp_path: Path) -> None:
    search = write_search(tmp_path, trials=3)
    best = gather(search).winner
    other = next(number for number in range(3) if number != best)
    publish(search, winner=other, with_report=True)
    assert f"Trial {best} has become better than trial {other}" in text_of(search)


def test_summaries_survive_their_way_through_json() -> None:
    again = from_record(json.loads(json_text(as_record(summary()))))
    assert as_record(again).keys() == as_record(summary()).keys()
    assert again.metrics == pytest.approx(summary().metrics, nan_ok=True)
    assert again.intervals["accuracy"] == (0.7, 0.9)
    assert np.isnan(again.intervals["auroc"]).all()


@pytest.mark.usefixtures("no_pictures")
def test_the_command_tells_a_search_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = write_search(tmp_path, trials=1)
    assert command(["report", search.store.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": f"{search.store.uri}/report.html"}
