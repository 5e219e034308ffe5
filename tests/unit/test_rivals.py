"""What the comparisons with other packages count and agree on, without any of those that are not locked."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks import calibration_rivals, in_turn, search_rivals, training_rivals
from benchmarks.search_epochs import EPOCHS, Curve, a_config
from retina_ray.config import RunConfig
from retina_ray.metrics.bootstrap import bootstrap_samples, draw_group_counts
from retina_ray.search.goals import Goal
from retina_ray.search.space import SearchSpace

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
GOAL = Goal("accuracy", "max")


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    return {"optim.lr": trial.suggest_float("x", 0.0, 1.0)}


SPACE = SearchSpace("x", suggest, lambda config: [], "accuracy", "max")


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return a_config(Path("search"), "none")


def rising(last: Sequence[float]) -> list[Curve]:
    """A curve for each last value, at x = 0, 1/n, ..., that rises to it in equal steps."""
    return [
        Curve({"x": place / len(last)}, [value * (epoch / EPOCHS) for epoch in range(1, EPOCHS + 1)])
        for place, value in enumerate(last)
    ]


def alone(pruner: Any, config: RunConfig, curves: Sequence[Curve], target: float, seed: int = 0) -> int | None:
    return search_rivals.optuna_epochs(
        target,
        curves,
        seed,
        space=SPACE,
        config=config,
        goal=GOAL,
        sampler=lambda seed: optuna.samplers.RandomSampler(seed=seed),
        pruner=pruner,
    )


def test_a_search_that_stops_nobody_pays_whole_trials(config: RunConfig) -> None:
    curves = rising([0.1, 0.2, 0.3, 0.4])
    spent = [alone(optuna.pruners.NopPruner, config, curves, 0.4, seed) for seed in range(20)]
    assert {epochs and epochs % EPOCHS for epochs in spent} == {0}
    assert set(spent) == {EPOCHS * trials for trials in (1, 2, 3, 4)}
    assert alone(optuna.pruners.NopPruner, config, curves, 0.5) is None


def test_who_stops_trials_early_pays_their_epochs_alone(config: RunConfig) -> None:
    class AfterTwo(optuna.pruners.BasePruner):
        """Stops after two epochs whoever has less than the first trial had then."""

        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.last_step == 1 and trial.intermediate_values[1] < 0.1

    # Only the last curve passes; the others cost two epochs each.
    curves = rising([0.1, 0.2, 0.3, 0.9])
    for seed in range(10):
        spent = alone(AfterTwo, config, curves, 0.9, seed)
        assert spent is not None
        assert (spent - EPOCHS) % 2 == 0
        assert EPOCHS <= spent <= EPOCHS + 6


def test_the_goal_counts_where_a_trial_ends_not_on_its_way(config: RunConfig) -> None:
    over_and_back = Curve({"x": 0.0}, [0.9] + [0.1] * (EPOCHS - 1))
    curves = [over_and_back, *rising([0.0, 0.0])[1:]]
    assert alone(optuna.pruners.NopPruner, config, curves, 0.5) is None


def test_ours_counts_like_the_others_where_there_is_nothing_to_stop(config: RunConfig) -> None:
    curves = rising([0.5])
    # Nearest needs a span: a second configuration that is as good.
    curves.append(Curve({"x": 1.0}, curves[0].values))
    assert search_rivals.our_epochs(0.5, curves, 0, space=SPACE, config=config, goal=GOAL) == EPOCHS


def test_quartiles_take_what_never_ends_for_the_longest() -> None:
    spent = [9, 18, None, 27, None, 36, 45, 54]
    assert search_rivals.quartiles(spent) == [27.0, 45.0, float("inf")]
    assert search_rivals.quartiles([9]) == [9.0, 9.0, 9.0]


def test_the_target_is_the_best_of_the_drawn() -> None:
    curves = rising([place / 63 for place in range(64)])
    targets = [float(search_rivals.target_of(curves, seed)) for seed in range(200)]
    assert max(targets) == 1.0
    assert statistics.mean(target == 1.0 for target in targets) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(("images", "grades", "bins"), [(300, 2, 10), (300, 5, 15), (300, 5, 20)])
def test_our_figures_are_those_of_torchmetrics(images: int, grades: int, bins: int) -> None:
    probabilities, truth = calibration_rivals.drawn(images, grades, seed=bins)
    own = calibration_rivals.ours(probabilities, truth, bins)
    theirs = calibration_rivals.torchmetrics(probabilities, truth, bins)
    assert len(theirs) == 12
    for name, value in theirs.items():
        assert own[name] == pytest.approx(value, abs=2e-6), name


def test_our_resamples_are_those_of_torchmetrics() -> None:
    probabilities, truth = calibration_rivals.drawn(300, 4, seed=0)
    samples = bootstrap_samples(probabilities, truth, np.arange(300), resamples=3, seed=1)
    for number, count in enumerate(draw_group_counts(np.random.default_rng(1), 300, 3)):
        rows = np.repeat(np.arange(300), count)
        spelt_out = multiclass_calibration_error(
            torch.from_numpy(probabilities[rows]), torch.from_numpy(truth[rows]), num_classes=4
        )
        assert samples["ece"][number] == pytest.approx(float(spelt_out), abs=1e-6)


def test_a_confidence_on_an_edge_is_one() -> None:
    probabilities, _ = calibration_rivals.on_edges(50, bins=10, seed=0)
    edges = torch.linspace(0, 1, 11).double().numpy()
    assert np.isin(probabilities[:, 0], edges).all()


def test_step_times_leave_out_first_epoch_and_what_is_between_epochs(config: RunConfig) -> None:
    three = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 3, "global_batch_size": 8})})
    # Two steps an epoch: slow, [5 s between epochs], 0.5 s, [5 s], 1.5 s.
    times = [0.0, 9.0, 14.0, 14.5, 19.5, 21.0]
    found = training_rivals.figures([times, times], three)
    assert found["step_ms"] == pytest.approx(1000.0)
    assert found["images_per_second"] == pytest.approx(8.0)
    assert found["epoch_s"] == pytest.approx(6.0)
    assert found["steps"] == 6
    with pytest.raises(RuntimeError, match=r"\[6, 5\] steps in 3 epochs"):
        training_rivals.figures([times, times[:-1]], three)


def test_rounds_go_through_all_in_turn_and_the_first_does_not_count() -> None:
    calls: list[str] = []
    lines: list[Any] = []

    def contestant(name: str) -> Any:
        return lambda: calls.append(name) or float(len(calls))

    found = in_turn.in_turn({"a": contestant("a"), "b": contestant("b")}, 2, log=lines.append)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert [line["round"] for line in lines] == [0, 0, 1, 1, 2, 2]


def test_a_missing_rival_is_named_with_what_installs_it() -> None:
    in_turn.require("torch")
    with pytest.raises(SystemExit, match="run: pip install no-such-rival"):
        in_turn.require("torch", "no-such-rival")


COMPARED = ("training-rivals", "epoch", "augmentation", "serving", "search-rivals", "calibration-rivals")


@pytest.mark.parametrize("name", COMPARED)
def test_the_page_shows_the_records_tables(name: str) -> None:
    assert (in_turn.RESULTS / "raw" / f"{name}.log").is_file()
    for line in (in_turn.RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| |"):
            assert line in PAGE, f"docs/benchmarks.md lacks a row of {name}.md: {line}"
