"""Every experiment can be laid out, names what exists, and says what the papers print."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retina_ray.config import override
from retina_ray.data.schema import KNOWN_TASKS, LESIONS
from retina_ray.errors import ConfigError
from retina_ray.metrics.grading import METRICS
from retina_ray.orchestration.reproduce_grid import lay_out
from retina_ray.reproduce.budget import Budget, base_of, resolutions
from retina_ray.reproduce.catalogue import EXPERIMENTS, apart, find, method_of, summary_of
from retina_ray.reproduce.experiment import Experiment, Printed, Scope
from retina_ray.reproduce.sources import NAME

TASKS = {"sall": ("dr", "amd", "arteriosclerosis"), "deepmt": ("dr",)}


def scope_of(name: str, budget: Budget = "paper") -> Scope:
    method = method_of(name) or "sall"
    grades = {task: KNOWN_TASKS[task].grades for task in TASKS[method]}
    counts = {
        split: {task: [50] * len(own) for task, own in grades.items()} for split in ("train", "validation", "test")
    }
    return Scope(
        method=method,
        model=method,
        has_baselines=method == "sall",
        tasks=TASKS[method],
        grades=grades,
        counts=counts,
        resolutions=resolutions(base_of(method, budget), budget),
        sources=dict.fromkeys(("aptos", "my clinic") if name == NAME else ("ddr",), TASKS[method]),
    )


def build(name: str, budget: Budget = "paper") -> Experiment:
    return find(name)(scope_of(name, budget))


def test_the_papers_tables_and_figures_are_there() -> None:
    tables = {"sall": (1, 3, 4, 5, 6, 8, 9), "deepmt": (1, 2, 3, 4, 5, 6)}
    figures = {"sall": (5, 6, 7, 8), "deepmt": (3, 4, 5, 8, 9, 10)}
    expected = {f"{paper}-table{number}" for paper, numbers in tables.items() for number in numbers}
    expected |= {f"{paper}-figure{number}" for paper, numbers in figures.items() for number in numbers}
    assert set(EXPERIMENTS) == expected | {NAME}


@pytest.mark.parametrize("budget", ["paper", "debug"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_names_what_exists(name: str, budget: Budget) -> None:
    experiment = build(name, budget)
    assert experiment.name == name
    arms = Counter(arm.name for arm in experiment.arms)
    assert all(count == 1 for count in arms.values())
    labels = [column.label for column in experiment.columns]
    assert len(set(labels)) == len(labels)
    used = {row.arm for row in experiment.rows if row.arm}
    assert used <= set(arms)
    drawn = {experiment.drawing.arm} if experiment.drawing else set()
    assert used | drawn == set(arms), "no arm is trained for nothing"
    for column in experiment.columns:
        assert bool(column.task) != bool(column.stage) or column.unit == "images"
        assert not column.task or column.metric in METRICS
    for number, row in enumerate(experiment.rows):
        assert set(row.printed) <= set(labels)
        assert set(row.columns) <= set(labels)
        assert row.against is None or (row.against != number and experiment.rows[row.against].arm)
        assert bool(row.arm) + bool(row.left_out) + bool(row.given) == 1
    for axes in experiment.charts:
        assert {label for panel in axes.panels for label in panel} <= set(labels)
        headings = {heading for row in experiment.rows for heading in row.cells}
        assert {axes.x, axes.series} - {""} <= headings


@pytest.mark.parametrize("budget", ["paper", "debug"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_of_a_grid_is_a_configuration_of_its_own(name: str, budget: Budget) -> None:
    base = override(base_of(method_of(name), budget), {"name": name})
    layout = lay_out(build(name, budget), base, seeds=2, folds=None)
    runs = [run for seeds in layout.values() for folds in seeds for run in folds]
    assert len({run.name for run in runs}) == len(runs)
    plain = {run.model_copy(update={"name": "x"}).model_dump_json() for run in runs}
    assert len(plain) == len(runs)


def test_folds_are_runs_of_their_own() -> None:
    base = override(base_of("sall", "debug"), {"name": "sall-table5", "seed": 7})
    layout = lay_out(build("sall-table5"), base, seeds=2, folds=3)
    runs = layout["T3-sa-mt"]
    assert [[(run.seed, run.data.folds, run.data.fold) for run in seed] for seed in runs] == [
        [(7, 3, 0), (7, 3, 1), (7, 3, 2)],
        [(8, 3, 0), (8, 3, 1), (8, 3, 2)],
    ]
    assert runs[1][2].name == "sall-table5.T3-sa-mt.s8.f2"


def test_the_printed_figures_bear_out_what_the_papers_say_of_them() -> None:
    third = {tuple(row.cells.values()): row.printed for row in build("sall-table3").rows}
    gain = third["3", "yes", "yes"]["DR acc"].value - third["1", "no", "no"]["DR acc"].value
    assert gain == pytest.approx(2.62)  # section IV-B
    ninth = [row.printed for row in build("sall-table9").rows]
    assert ninth[1]["DR acc"].value - ninth[0]["DR acc"].value == pytest.approx(5.91)  # the abstract
    assert ninth[1]["AMD acc"].value - ninth[0]["AMD acc"].value == pytest.approx(3.69)
    first = {row.cells["Method"]: row.printed for row in build("deepmt-table1").rows}
    best = {
        label: max(each[label].value for name, each in first.items() if name != "DeepMT-DR") for label in first["M-Net"]
    }
    gains = {label: first["DeepMT-DR"][label].value - value for label, value in best.items()}
    assert gains == pytest.approx({"Accuracy": 1.1, "Precision": 0.9, "F1": 1.2, "Kappa": 2.4})  # section V-B
    best = build("deepmt-table3").rows[-1].printed
    assert best["mean AP"].spread is None
    assert best["SE AUC"] == Printed(99.2, 0.8)
    means = [np.mean([best[f"{lesion} {figure}"].value for lesion in LESIONS]) for figure in ("AUC", "AP")]
    assert means == pytest.approx([best["mean AUC"].value, best["mean AP"].value], abs=0.06)
    second = {row.cells["Method"]: row.printed["Accuracy"].value for row in build("deepmt-table2").rows}
    assert second.pop("DeepMT-DR") - max(second.values()) == pytest.approx(6.8)


def test_table_9_limits_what_there_is() -> None:
    small = build("sall-table9")
    limits = [arm.overrides["data.images_per_class"] for arm in small.arms]
    assert limits == [10, 19]
    scope = scope_of("sall-table9")
    large = replace(scope, counts={"train": {task: [7735, 900] for task in scope.tasks}})
    assert [arm.overrides["data.images_per_class"] for arm in find("sall-table9")(large).arms] == [1500, 3000]


def test_eyepacs_has_figures_of_its_own() -> None:
    scope = scope_of("deepmt-table1")
    rows = find("deepmt-table1")(replace(scope, sources={"eyepacs": ("dr",)})).rows
    assert rows[-1].printed["Accuracy"].value == 86.9
    assert build("deepmt-table1").rows[-1].printed["Accuracy"].value == 83.6


def test_what_cannot_be_compared_is_said() -> None:
    scope = scope_of("deepmt-table1")
    experiment = build("deepmt-table1")
    assert apart(experiment, scope, debug=False, folds=None) == ""
    assert "hardly learn" in apart(experiment, scope, debug=True, folds=None)
    assert "folds" in apart(experiment, scope, debug=False, folds=3)
    assert "idrid" in apart(experiment, replace(scope, sources={"idrid": ("dr",)}), debug=False, folds=None)
    assert "512" in apart(experiment, replace(scope, resolutions=(64, 128, 256, 512)), debug=False, folds=None)
    for private in ("sall-table3", "deepmt-table2"):
        assert "private" in apart(build(private), scope, debug=False, folds=None)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("deepmt-")])
def test_only_table_1_has_figures_of_eyepacs(name: str) -> None:
    on_eyepacs = replace(scope_of(name), sources={"eyepacs": ("dr",)})
    reason = apart(find(name)(on_eyepacs), on_eyepacs, debug=False, folds=None)
    assert (reason == "") == (name == "deepmt-table1")


@given(st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True))
@example(["my clinic", "my-clinic", "clinique", "\u75c5\u9662", "\u8bca\u6240", "a" * 70])
def test_sources_of_any_names_have_runs_of_their_own(sources: list[str]) -> None:
    experiment = find(NAME)(replace(scope_of(NAME), sources=dict.fromkeys(sources, TASKS["sall"])))
    base = override(base_of("sall", "debug"), {"name": NAME})
    layout = lay_out(experiment, base, seeds=1, folds=None)
    held_out = [run.data.hold_out for seeds in layout.values() for folds in seeds for run in folds]
    assert held_out == sources


def test_a_wrong_name_and_too_few_tasks_are_explained() -> None:
    with pytest.raises(ConfigError, match="did you mean sall-table3"):
        find("sall-tabel3")
    scope = scope_of("sall-table8")
    with pytest.raises(ConfigError, match="3 tasks"):
        find("sall-table8")(replace(scope, tasks=("dr", "amd")))
    assert all(summary_of(name) for name in EXPERIMENTS)


def test_every_source_is_left_out_once() -> None:
    experiment = build(NAME)
    assert [arm.overrides for arm in experiment.arms] == [{"data.hold_out": "aptos"}, {"data.hold_out": "my clinic"}]
    assert [row.against for row in experiment.rows] == [None, 0, None, 2]
    alone = find(NAME)(replace(scope_of(NAME), has_baselines=False))
    assert [row.cells["Tested on"] for row in alone.rows] == ["aptos", "my clinic"]
    with pytest.raises(ConfigError, match="data merge"):
        find(NAME)(replace(scope_of(NAME), sources={"aptos": ("dr",)}))


def test_sources_that_grade_different_tasks_test_what_they_grade() -> None:
    sources = {"aptos": ("dr",), "idrid": ("dr", "dme"), "palm": ("myopia",), "refuge": ("amd",)}
    scope = replace(scope_of(NAME), tasks=("dr", "amd"), sources=sources)
    experiment = find(NAME)(scope)
    assert [arm.overrides["data.hold_out"] for arm in experiment.arms] == ["aptos", "idrid"]
    own = {label for row in experiment.rows for label in row.columns}
    assert own == {column.label for column in experiment.columns if column.task == "dr"}
    reasons = {row.cells["Tested on"]: row.left_out for row in experiment.rows if row.left_out}
    assert reasons == {"palm": "it grades none of dr, amd", "refuge": "no other source grades amd"}
    with pytest.raises(ConfigError, match="no other source grades dr; no other source grades amd"):
        find(NAME)(replace(scope, sources={"aptos": ("dr",), "refuge": ("amd",)}))


def test_a_recipe_of_the_other_method_is_refused() -> None:
    assert base_of(None, "paper", "deepmt_dr").method.name == "deepmt"
    assert base_of(None, "debug", "deepmt_dr").data.image_size == 128
    assert base_of("sall", "paper", "sall_debug").name == "sall-debug"
    with pytest.raises(ConfigError, match="about sall, the recipe about deepmt"):
        base_of("sall", "paper", "deepmt_dr")
