"""What the figures of a search show: the right numbers, on the right axes, told apart by state."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from retina_ray.orchestration.search_report import report_search
from retina_ray.report import search_figures, search_points
from retina_ray.report.quantities import quantity
from retina_ray.report.search_points import Axis, LeftOutError
from retina_ray.search.goals import Goal
from retina_ray.search.journal import TrialRecord
from tests.written_search import ACCURACY, ECE, EPOCHS, figures, mixed, write_search


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    return write_search(tmp_path_factory.mktemp("search"), trials=24, planned=30, fate=mixed).trials()


def test_history_holds_every_value_and_the_best_of_what_has_ended(trials: list[TrialRecord]) -> None:
    points = search_points.last_values(trials, "accuracy")
    assert [point.number for point in points] == [number for number in range(24) if number not in (5, 17)]
    last = {trial.number: 100.0 * trial.reports[-1].figures["accuracy"] for trial in trials if trial.reports}
    assert {point.number: point.value for point in points} == pytest.approx(last)
    best = search_points.best_so_far(points, ACCURACY)
    ended = [point.value for point in points if point.state in ("complete", "stopped")]
    assert [value for _, value in best] == np.maximum.accumulate(ended).tolist()
    least = search_points.best_so_far(points, Goal("accuracy", "min"))
    assert [value for _, value in least] == np.minimum.accumulate(ended).tolist()


def test_states_differ_in_colour_marker_and_line() -> None:
    for key in ("color", "marker", "linestyle"):
        assert len({style[key] for style in search_figures.STYLES.values()}) == 4


def test_history_draws_states_apart_and_failures_at_the_bottom(trials: list[TrialRecord]) -> None:
    (axes,) = search_figures.history(trials, ACCURACY, winner=3).axes
    drawn = {str(each.get_label()): np.asarray(each.get_offsets()) for each in axes.collections}
    assert {label: len(places) for label, places in drawn.items()} == {
        **{"complete": 13, "stopped": 7, "running": 2, "failed": 2},
        "best, trial 3": 1,
    }
    assert drawn["failed"].tolist() == [[5.0, 0.0], [17.0, 0.0]]
    assert drawn["best, trial 3"][0, 0] == 3.0


def test_learning_curves_are_whole_and_the_winner_is_in_ink(trials: list[TrialRecord]) -> None:
    drawn = search_points.curves(trials, "accuracy")
    assert {curve.number for curve in drawn} == set(range(24)) - {5, 17}
    assert {len(curve.epochs) for curve in drawn if curve.state == "complete"} == {EPOCHS}
    assert drawn[0].epochs == list(range(1, EPOCHS + 1))
    figure = search_figures.learning_curves(trials, ACCURACY, winner=3, unit="fold")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "folds done"
    assert axes.get_ylabel() == "validation accuracy (%)"
    widths = [line.get_linewidth() for line in axes.lines]
    assert widths.count(2.6) == 1
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["complete", "stopped", "running", "best, trial 3"]


def test_parameters_have_the_axes_of_their_ranges(trials: list[TrialRecord]) -> None:
    axes = search_points.parameter_axes(trials)
    assert list(axes) == [f"method.{name}" for name in axes_names()]
    heat = axes["method.temperature"]
    assert (heat.label, heat.low, heat.high, heat.logarithmic) == ("temperature", 1.0, 20.0, True)
    assert heat.share(math.sqrt(20.0)) == pytest.approx(0.5)
    assert [label for _, label in heat.ticks()] == ["1", "2", "5", "10", "20"]
    ratio = axes["method.ratio.dr"]
    assert not ratio.logarithmic
    assert [label for _, label in ratio.ticks()] == ["0.25", "0.4", "0.6", "0.8", "1"]
    dropout = axes["method.student.dropout"]
    assert dropout.choices == ("0.0", "0.25", "0.5")
    assert [dropout.position(choice) for choice in (0.0, 0.25, 0.5)] == [0.0, 1.0, 2.0]


def axes_names() -> list[str]:
    return ["temperature", "ratio.dr", "ratio.amd", "loss_weight.amd", "student.lr", "student.dropout"]


def test_an_axis_of_one_value_or_of_magnitudes_is_readable() -> None:
    assert Axis("x", 2.0, 2.0).ticks() == [(2.0, "2")]
    assert Axis("x", 2.0, 2.0).share(2.0) == 0.5
    assert [label for _, label in Axis("layers", 1.0, 4.0, whole=True).ticks()] == ["1", "2", "3", "4"]
    wide = Axis("x", 1e-7, 1e-3, logarithmic=True)
    assert [label for _, label in wide.ticks()] == ["1e-07", "1e-06", "1e-05", "0.0001", "0.001"]


def test_slices_are_logarithmic_where_the_range_is(trials: list[TrialRecord]) -> None:
    figure = search_figures.slices(trials, ACCURACY, winner=None)
    panels = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == axes_names()
    scales = [axes.get_xscale() for axes in panels.values()]
    assert scales == ["log", "linear", "linear", "log", "log", "linear"]
    low, high = panels["temperature"].get_xlim()
    assert low < 1.0 < 20.0 < high
    heat = {trial.number: trial.params["method.temperature"] for trial in trials}
    drawn = np.concatenate([np.asarray(each.get_offsets()) for each in panels["temperature"].collections])
    points = search_points.last_values(trials, "accuracy")
    np.testing.assert_allclose(sorted(drawn.tolist()), sorted([heat[point.number], point.value] for point in points))


def test_slices_by_task_show_each_task_of_a_mean(trials: list[TrialRecord]) -> None:
    metrics = search_points.task_metrics("accuracy", trials, ["dr", "amd"])
    assert metrics == {"dr": "accuracy_dr", "amd": "accuracy_amd"}
    assert search_points.task_metrics("accuracy_dr", trials, ["dr", "amd"]) == {}
    assert search_points.task_metrics("accuracy", trials, ["dr"]) == {}
    axes = search_figures.task_slices(trials, ACCURACY, metrics).axes[0]
    drawn = {str(each.get_label()): len(np.asarray(each.get_offsets())) for each in axes.collections}
    assert drawn == {
        **{"DR, complete": 13, "DR, not complete": 9},
        **{"AMD, complete": 13, "AMD, not complete": 9},
    }


def test_parallel_coordinates_end_with_the_best(trials: list[TrialRecord]) -> None:
    drawn = search_points.coordinates(trials, [ACCURACY, ECE])
    assert [axis.label for axis in drawn.axes] == [*axes_names(), "accuracy (%)", "ECE (%)"]
    assert drawn.lines.shape == (22, 8)
    assert ((drawn.lines >= 0.0) & (drawn.lines <= 1.0)).all()
    assert drawn.values.tolist() == sorted(drawn.values)
    assert drawn.lines[-1, -2] == 1.0
    heat = {trial.number: trial.params["method.temperature"] for trial in trials}
    assert drawn.lines[-1, 0] == pytest.approx(math.log(heat[drawn.numbers[-1]]) / math.log(20.0))
    least = search_points.coordinates(trials, [ECE])
    assert least.values.tolist() == sorted(least.values, reverse=True)


def test_a_parameter_that_some_trials_lack_leaves_a_gap(tmp_path: Path) -> None:
    def conditional(trial: optuna.Trial) -> dict[str, Any]:
        heat = trial.suggest_float("heat", 1.0, 4.0)
        return {"method.temperature": heat} | (
            {"method.dropout": trial.suggest_float("dropout", 0.0, 0.5)} if trial.number % 2 else {}
        )

    def reached(params: Any, number: int, epoch: int) -> dict[str, float | None]:
        return {"accuracy": 0.5 + 0.1 * params["heat"]}

    search = write_search(tmp_path, trials=20, space=conditional, reached=reached)
    drawn = search_points.coordinates(search.trials(), [ACCURACY])
    assert np.isnan(drawn.lines[:, 1]).sum() == 10
    assert search_points.importance(search.trials(), ACCURACY) == {"heat": 1.0}
    assert "Importance" in Path(report_search(search)).read_text(encoding="utf-8")


def test_importance_finds_what_matters(tmp_path: Path) -> None:
    trials = write_search(tmp_path, trials=search_points.IMPORTANCE_FROM + 8).trials()
    shares = search_points.importance(trials, ACCURACY)
    assert next(iter(shares)) == "method.temperature"
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == search_points.importance(trials, ACCURACY)
    names = {name: name for name in shares}
    (axes,) = search_figures.importance_bars({"accuracy": shares}, names).axes
    lengths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert lengths == pytest.approx([100.0 * share for share in shares.values()])
    with pytest.raises(LeftOutError, match="15 trials completed or stopped with accuracy, 16 are needed"):
        search_points.importance(trials[:15], ACCURACY)
    with pytest.raises(LeftOutError, match="1 trial completed or stopped with accuracy"):
        search_points.importance(trials[:1], ACCURACY)


def test_importance_of_what_never_changes_is_left_out(tmp_path: Path) -> None:
    trials = write_search(tmp_path, trials=16, reached=lambda *_: {"accuracy": 0.5}).trials()
    with pytest.raises(LeftOutError, match="every trial has the same accuracy"):
        search_points.importance(trials, ACCURACY)


def test_three_goals_are_shown_by_pairs(tmp_path: Path) -> None:
    goals = (ACCURACY, ECE, Goal("criterion", "min"))
    trials = write_search(tmp_path, trials=4, goals=goals).trials()
    figure = search_figures.pareto(trials, goals, [0])
    drawn = [(axes.get_xlabel().split(",")[0], axes.get_ylabel().split(",")[0]) for axes in figure.axes[:3]]
    accuracy, ece, criterion = (f"validation {label}" for label in ("accuracy (%)", "ECE (%)", "criterion"))
    assert drawn == [(accuracy, ece), (accuracy, criterion), (ece, criterion)]
    assert not figure.axes[3].get_visible()


def test_values_that_are_no_numbers_are_not_drawn(tmp_path: Path) -> None:
    def reached(params: Any, number: int, epoch: int) -> dict[str, float | None]:
        values = figures(params, number, epoch)
        return values | {"accuracy": None} if number == 0 or (number == 1 and epoch == 1) else values

    search = write_search(tmp_path, trials=3, reached=reached)
    trials = search.trials()
    assert [point.number for point in search_points.last_values(trials, "accuracy")] == [1, 2]
    curve = search_points.curves(trials, "accuracy")[0]
    assert curve.number == 1
    assert math.isnan(curve.values[0])
    assert "<img" in Path(report_search(search)).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metric", "label", "value", "text"),
    [
        ("accuracy", "accuracy (%)", 78.773, "78.77"),
        ("accuracy_dr", "accuracy, DR (%)", 78.773, "78.77"),
        ("kappa_quadratic", "kappa, quadratic", 0.61234, "0.6123"),
        ("kappa_quadratic_amd", "kappa, quadratic, AMD", 0.0, "0.0000"),
        ("kappa_dr", "kappa, DR", 0.5, "0.5000"),
        ("auroc", "AUROC", 0.9, "0.9000"),
        ("ece", "ECE (%)", 4.0, "4.00"),
        ("psnr", "PSNR (dB)", 31.2345, "31.23"),
        ("criterion", "criterion", 1e-5, "1e-05"),
        ("my_own", "my own", 12345.6, "1.235e+04"),
    ],
)
def test_figures_are_written_with_label_unit_and_few_digits(metric: str, label: str, value: float, text: str) -> None:
    assert quantity(metric).label == label
    assert quantity(metric).text(value) == text
