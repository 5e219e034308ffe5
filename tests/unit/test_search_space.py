"""Search spaces and goals: the product's own, a user's, and what is wrong with others."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from retina_ray.config import override
from retina_ray.errors import ConfigError
from retina_ray.recipes import load_recipe
from retina_ray.search.goals import Goal, figures, goals_of, require_comparable
from retina_ray.search.space import load_space

OWN = """
METRIC, MODE = "kappa,ece", "max,min"

def points(config):
    return [{"t": config["method"]["temperature"]}]

def suggest(trial):
    return {"method.temperature": trial.suggest_float("t", 1, 9)}

def fails(trial):
    raise KeyError("gamma")

def wrong(trial):
    return ["method.temperature"]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder; its name, which no other test has."""
    name = f"space_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(
    ("space", "recipe"),
    [("sall", "sall"), ("sall", "sall_debug"), ("deepmt_dr", "deepmt_dr"), ("deepmt_dr", "deepmt_debug")],
)
def test_every_suggestion_is_a_configuration_and_the_first_is_the_papers(space: str, recipe: str) -> None:
    base = load_recipe(recipe)
    plain = base.model_dump(mode="json")
    found = load_space(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.set_user_attr("config", plain)
    points = found.points(plain)
    for point in points:
        study.enqueue_trial(dict(point))
    configs, params = [], []
    for _ in range(len(points) + 20):
        trial = study.ask()
        configs.append(override(base, found.overrides(trial)))
        params.append(trial.params)
    # A point names every parameter and lies within its range: otherwise Optuna would draw it, or warn.
    assert params[: len(points)] == [dict(point) for point in points]
    explicit = {"method.ratio": {"dr": 1.0, "amd": 1.0}, "method.loss_weight": {"dr": 1.0, "amd": 1.0}}
    student = {"method.student.lr": base.optim.lr, "method.student.dropout": plain["method"].get("dropout")}
    assert configs[0] == (override(base, {**explicit, **student}) if space == "sall" else base)
    assert len({config.model_dump_json() for config in configs[len(points) :]}) == 20
    assert goals_of(found, None)


def test_a_search_over_three_tasks_has_a_ratio_and_a_weight_for_each() -> None:
    base = override(load_recipe("sall"), {"method.tasks": ["dr", "amd", "arteriosclerosis"]})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.set_user_attr("config", base.model_dump(mode="json"))
    config = override(base, load_space("sall").overrides(study.ask()))
    assert set(config.method.ratio) == set(config.method.loss_weight) == {"dr", "amd", "arteriosclerosis"}


def test_a_users_own_function_in_the_current_folder(own: str) -> None:
    space = load_space(f"{own}:suggest")
    study = optuna.create_study()
    assert 1 <= space.overrides(study.ask())["method.temperature"] <= 9
    assert space.points({"method": {"temperature": 3.0}}) == [{"t": 3.0}]
    assert goals_of(space, None) == (Goal("kappa", "max"), Goal("ece", "min"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sal", "unknown search space: sal; did you mean sall"),
        ("nowhere_at_all:suggest", "cannot import the search space: nowhere_at_all:suggest"),
        ("tune_spaces.sall:sugest", "has no such function: tune_spaces.sall:sugest; define sugest"),
        ("tune_spaces.sall:METRIC", "has no such function"),
    ],
)
def test_a_space_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_space(name)


@pytest.mark.parametrize(
    ("function", "message"), [("fails", "the search space fails: .*KeyError: 'gamma'"), ("wrong", "returns no config")]
)
def test_a_space_that_fails_is_explained(own: str, function: str, message: str) -> None:
    space = load_space(f"{own}:{function}")
    with pytest.raises(ConfigError, match=message):
        space.overrides(optuna.create_study().ask())


def test_the_users_metrics_come_first() -> None:
    space = load_space("sall")
    assert goals_of(space, None) == (Goal("accuracy", "max"),)
    assert goals_of(space, "kappa, ece_dr") == (Goal("kappa", "max"), Goal("ece_dr", "min"))
    assert goals_of(space, "criterion") == (Goal("criterion", "min"),)
    for wrong in ("", "kappa,", "kappa,kappa"):
        with pytest.raises(ConfigError, match="not a list of metrics"):
            goals_of(space, wrong)


def test_the_criterion_is_not_optimised_over_its_own_weights() -> None:
    criterion, loss = Goal("criterion", "min"), Goal("loss", "min")
    drawn = [{"method.temperature": 3.0, "method.loss_weight.amd": 0.25}]
    with pytest.raises(ConfigError, match=r"method\.loss_weight\.amd.*optimise loss"):
        require_comparable([criterion], drawn)
    require_comparable([loss], drawn)
    require_comparable([criterion], [{"method.temperature": 3.0}])


def epoch(number: int, criterion: float, **values: float) -> dict[str, Any]:
    return {
        "epoch": number,
        "validation_criterion": criterion,
        "validation_s": 0.1,
        **{f"validation_{name}": value for name, value in values.items()},
    }


def test_figures_are_those_of_the_weights_that_are_kept() -> None:
    history = [epoch(1, 2.0, accuracy_dr=0.4, accuracy_amd=0.8), epoch(2, 1.0, accuracy_dr=0.6, accuracy_amd=0.7)]
    worse = epoch(3, 1.5, accuracy_dr=0.9, accuracy_amd=0.9)
    expected = {"criterion": 1.0, "accuracy_dr": 0.6, "accuracy_amd": 0.7, "accuracy": pytest.approx(0.65)}
    assert figures([history], ["dr", "amd"]) == expected
    assert figures([[*history, worse]], ["dr", "amd"]) == expected
    diverged = epoch(3, float("nan"), accuracy_dr=0.9, accuracy_amd=0.9)
    assert figures([[diverged, *history]], ["dr", "amd"]) == expected


def test_figures_of_several_networks_are_put_together() -> None:
    networks = [[epoch(1, 2.0, kappa_dr=0.5, loss_dr=1.0)], [epoch(1, 3.0, kappa_amd=0.7, loss_amd=2.0)]]
    found = figures(networks, ["dr", "amd"])
    means = {"kappa": pytest.approx(0.6), "loss": 1.5}
    assert found == {"criterion": 5.0, "kappa_dr": 0.5, "kappa_amd": 0.7, "loss_dr": 1.0, "loss_amd": 2.0, **means}
