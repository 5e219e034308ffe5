"""The configuration tree: what is refused, and how it is said; overrides, files and the way round."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.config import RunConfig, dotted_paths, from_mapping, load_file, override, to_yaml
from retina_ray.config_section import Section
from retina_ray.errors import ConfigError

BASE = RunConfig(name="base")


def value_at(config: Section, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def refusal(assignments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        override(BASE, assignments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("optim.lr_peak", "optim.lr"),
        ("trian.epochs", "train.epochs"),
        ("epochs", "train.epochs"),
        ("runtime.checkpoint.every", "runtime.checkpoint.every_s"),
        ("method.temprature", "method.temperature"),
        ("optim.lr.peak", "optim.lr"),
    ],
)
def test_an_unknown_path_names_the_nearest(path: str, nearest: str) -> None:
    message = refusal([f"{path}=1"])
    assert path in message
    assert f"did you mean {nearest}" in message


@pytest.mark.parametrize("path", ["", ".", "..", "seed.", ".seed", "data."])
def test_a_path_with_empty_parts_is_unknown(path: str) -> None:
    assert "\n" not in refusal({path: 1})


def test_an_unknown_key_inside_a_nested_mapping_is_named_with_its_whole_path() -> None:
    message = refusal({"runtime": {"checkpoint": {"every_stpes": 3}}})
    assert "runtime.checkpoint.every_stpes" in message
    assert "did you mean runtime.checkpoint.every_steps?" in message


@pytest.mark.parametrize("values", [{1: 2}, {True: 1}, {"optim": {True: 1}}, {None: 1}])
def test_a_key_that_is_no_word_is_refused(values: dict[Any, Any]) -> None:
    # YAML reads the keys `on`, `yes` and `1` as a truth value or a number.
    refusal(values)


@pytest.mark.parametrize(
    ("assignment", "path"),
    [
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr=", "optim.lr"),
        ("optim.lr=true", "optim.lr"),
        ("train.epochs=1.5", "train.epochs"),
        ("train.epochs=0", "train.epochs"),
        ("train.epochs='3'", "train.epochs"),
        ("train.precision=fp8", "train.precision"),
        ("augment.flip=1", "augment.flip"),
        ("optim.betas=0.9", "optim.betas"),
        ("optim.betas=[0.9, 0.99, 0.999]", "optim.betas"),
        ("method.tasks=dr", "method.tasks"),
        ("method.tasks=[]", "method.tasks"),
        ("method.tasks=[dr, dr]", "method"),
        ("method.tasks=[DR, amd]", "method.tasks"),
        ("method.ratio={dr: 0}", "method.ratio.dr"),
        ("method.ratio.dr=1.5", "method.ratio.dr"),
        ("method.loss_weight.dr=-1", "method.loss_weight.dr"),
        ("data.fold=3", "data"),
        ("runtime.cpus_per_worker=many", "runtime.cpus_per_worker"),
        ("runtime.use_gpu=maybe", "runtime.use_gpu"),
        ("runtime.checkpoint.keep=1", "runtime.checkpoint.keep"),
        ("name=../escape", "name"),
        ("seed=-1", "seed"),
        ("optim=3", "optim"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_one_line_with_its_path(assignment: str, path: str) -> None:
    message = refusal([assignment])
    assert "\n" not in message
    assert path in message
    assert "pydantic" not in message


@pytest.mark.parametrize("text", ["optim.lr", "=1", "optim.lr 1e-4", "method.tasks=[dr", "data.path={"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    assert "\n" not in refusal([text])


@pytest.mark.parametrize("field", ["ratio", "loss_weight"])
def test_a_share_or_weight_of_an_unknown_task_is_refused(field: str) -> None:
    assert f"{field}.glaucoma names no task of ['dr', 'amd']" in refusal([f"method.{field}.glaucoma=0.5"])


def test_synergic_labels_need_a_second_task() -> None:
    assert "synergic_labels=false" in refusal(["method.tasks=[dr]"])
    override(BASE, ["method.tasks=[dr]", "method.synergic_labels=false"])


def test_the_batch_must_divide_over_workers_and_micro_batches() -> None:
    message = refusal(["runtime.workers=3", "train.accumulate=2"])
    assert "32" in message
    assert "(6)" in message
    override(BASE, ["runtime.workers=4", "train.accumulate=8"])


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1.e-4"])
def test_numbers_with_exponents_are_numbers(text: str, tmp_path: Path) -> None:
    assert override(BASE, [f"optim.lr={text}"]).optim.lr == 1e-4
    assert override(BASE, [f"optim={{lr: {text}}}"]).optim.lr == 1e-4
    file = tmp_path / "run.yaml"
    file.write_text(f"optim:\n  lr: {text}\n")
    assert override(BASE, load_file(file)).optim.lr == 1e-4


def test_a_whole_number_will_do_for_a_real_one() -> None:
    assert override(BASE, ["method.temperature=5"]).method.temperature == 5.0


def test_a_nested_mapping_merges_into_the_base() -> None:
    base = override(BASE, ["optim.name=sgd", "method.ratio.dr=0.5", "runtime.checkpoint.keep=4"])
    merged = override(base, {"optim": {"lr": 0.1}, "runtime": {"checkpoint": {"every_steps": 7}}})
    assert (merged.optim.name, merged.optim.lr) == ("sgd", 0.1)
    assert (merged.runtime.checkpoint.keep, merged.runtime.checkpoint.every_steps) == (4, 7)
    assert merged.method.ratio == {"dr": 0.5}
    assert merged.train == base.train


def test_later_assignments_win_and_the_base_stays() -> None:
    changed = override(BASE, ["method.ratio.dr=0.5", "method.ratio.amd=0.25", "method.ratio.dr=0.75"])
    assert changed.method.ratio == {"dr": 0.75, "amd": 0.25}
    assert BASE.method.ratio == {}


@pytest.mark.parametrize("path", dotted_paths(BASE))
def test_every_path_takes_its_own_value(path: str) -> None:
    shown = json.loads(json.dumps(BASE.model_dump(mode="json")))
    for part in path.split("."):
        shown = shown[part]
    assert override(BASE, {path: shown}) == BASE
    assert override(BASE, [f"{path}={json.dumps(shown)}"]) == BASE
    assert value_at(BASE, path) == value_at(override(BASE, {path: shown}), path)


def test_the_paths_are_those_of_the_tree() -> None:
    def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
        return [
            path
            for key, value in values.items()
            for path in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key])
        ]

    assert dotted_paths(BASE) == leaves(BASE.model_dump())


configs = st.builds(
    lambda name, lr, betas, ratio, epochs, folds, every_s, workers, address: override(
        BASE,
        {
            "name": name,
            "optim.lr": lr,
            "optim.betas": list(betas),
            "method.ratio": ratio,
            "train.epochs": epochs,
            "train.global_batch_size": 12,
            "data.folds": folds,
            "runtime.checkpoint.every_s": every_s,
            "runtime.workers": workers,
            "runtime.address": address,
        },
    ),
    st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(
        lambda name: name.lower() not in ("nan", "inf", "infinity")
    ),
    st.floats(1e-12, 1e3),
    st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    st.dictionaries(st.sampled_from(["dr", "amd"]), st.floats(0, 1, exclude_min=True)),
    st.integers(1, 10**6),
    st.none() | st.integers(3, 20),
    st.none() | st.floats(1e-3, 1e6),
    st.integers(0, 4),
    st.sampled_from(["local", "auto", "10.0.0.1:6379"]),
)


@settings(max_examples=20)
@given(configs)
def test_yaml_is_the_way_back(config: RunConfig) -> None:
    assert from_mapping(yaml.safe_load(to_yaml(config))) == config
    assert from_mapping(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("name", ["2024", "007", "1e5", "2024_01", "inf", "nan", "0x10"])
def test_a_name_that_looks_like_a_number_stays_a_name(name: str) -> None:
    config = RunConfig(name=name)
    assert from_mapping(yaml.safe_load(to_yaml(config))) == config
    assert from_mapping(config.model_dump(mode="json")) == config


def test_a_file_is_a_mapping_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(override(BASE, ["optim.lr=1e-4"])))
    assert from_mapping(load_file(file)).optim.lr == 1e-4
    for content in ("", "- 1", "3", "a: [", "\tb: 1", "a: b: c"):
        file.write_text(content)
        with pytest.raises(ConfigError) as caught:
            load_file(file)
        assert "\n" not in str(caught.value)
    file.write_bytes(b"\xff\xfe\x00")
    for path in (file, tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load_file(path)
        assert str(path) in str(caught.value)


def test_a_name_is_required() -> None:
    with pytest.raises(ConfigError, match="missing configuration key: name"):
        from_mapping({})


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BASE.train.epochs = 3  # type: ignore[misc]  # that is the test


def test_workers_may_come_and_go_between_two_numbers() -> None:
    config = override(BASE, ["runtime.workers=[2,6]"])
    assert config.runtime.workers == (2, 6)
    assert (config.runtime.fewest_workers, config.runtime.most_workers) == (2, 6)
    assert from_mapping(config.model_dump(mode="json")) == config
    fixed = override(BASE, ["runtime.workers=4"]).runtime
    assert (fixed.fewest_workers, fixed.most_workers) == (4, 4)
    # No number of ranks in between has to divide the batch, but each has a row.
    override(BASE, ["runtime.workers=[3,5]", "train.global_batch_size=7"])
    assert "at least the most runtime.workers" in refusal(["runtime.workers=[3,8]", "train.global_batch_size=7"])
    assert "[fewest, most]" in refusal(["runtime.workers=[4,2]"])
    for wrong in ("[0,2]", "[1]", "[1,2,3]", "many"):
        assert "runtime.workers" in refusal([f"runtime.workers={wrong}"])
