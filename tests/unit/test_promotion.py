"""Which version may become the champion, in a real MLflow on sqlite, and what the command line says of it.

One database serves the file, since making one takes MLflow seconds. Most bundles are copies of one whose manifest is
edited, so that figures and intervals are round.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from retina_ray.bundle import MANIFEST, Bundle
from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override
from retina_ray.data.store import Store
from retina_ray.errors import BundleError, PromotionError
from retina_ray.metrics.summary import summarise
from retina_ray.mlflow_access import connect
from retina_ray.model_versions import list_models, move_champion
from retina_ray.orchestration import promote as promote_module
from retina_ray.orchestration.promote import promote
from retina_ray.orchestration.run_folder import BUNDLE, RunFolder
from retina_ray.registry import Tracker
from tests.bundles import Made, make_everything, worsened

pytestmark = pytest.mark.timeout(300)  # MLflow's import and first migration, on a busy machine

KAPPA, ACCURACY = (0.6, 0.5, 0.7), (0.8, 0.75, 0.85)
"""The champion's figures with low and high bound, for both tasks."""

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_everything(tmp_path_factory.mktemp("dataset"), **{"evaluate.bootstrap": 200})


@pytest.fixture(scope="module")
def built(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.build(tmp_path_factory.mktemp("built")).store.local_path


@dataclass
class Registry:
    """The registered model of one test."""

    config: RunConfig
    folder: Path
    built: Path
    sources: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.config.tracking.model_name

    def add(self, *edits: Edit) -> None:
        """Register a version whose manifest is edited."""
        folder = self.folder / f"copy-{len(self.sources)}"
        shutil.copytree(self.built, folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        for edit in (name(f"version {len(self.sources) + 1}"), figures(), *edits):
            edit(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        self.register(folder)

    def register(self, folder: Path) -> None:
        with Tracker(self.config, run_name="run", resume=True) as tracker:
            tracker.register(Bundle.load(folder), folder)
        self.sources.append(folder)

    def champion(self) -> int | None:
        """The champion, after a look at whether all else is as it was."""
        versions = [model for model in list_models(self.config) if model.name == self.name]
        assert [model.version for model in versions] == [*range(len(self.sources), 0, -1)]
        assert [model.source for model in reversed(versions)] == [str(source) for source in self.sources]
        assert "candidate" in versions[0].aliases
        return next((model.version for model in versions if "champion" in model.aliases), None)

    def refused(self, which: str = "candidate") -> str:
        """Return why a version is not promoted."""
        before = self.champion()
        with pytest.raises(PromotionError) as caught:
            promote(self.config, self.name, which)
        assert self.champion() == before
        assert caught.value.fix.endswith("or add --force")
        return str(caught.value.value)

    def promoted(self, which: str = "candidate", **how: bool) -> promote_module.Promotion:
        promotion = promote(self.config, self.name, which, **how)
        assert self.champion() == promotion.after
        return promotion


@pytest.fixture
def registry(
    storage: Path, built: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    name = re.sub(r"\W+", "-", request.node.name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{storage / 'mlflow.db'}")
    values = {"runtime.storage": str(tmp_path), "tracking.model_name": name, "tracking.experiment": name}
    return Registry(override(RunConfig(name="run"), values), tmp_path, built)


def name(text: str) -> Edit:
    return lambda manifest: manifest.update(name=text)


def figures(kappa: float = KAPPA[0], accuracy: float = ACCURACY[0], tasks: tuple[str, ...] = ("dr", "amd")) -> Edit:
    """Give tasks these figures, and the champion's intervals."""

    def edit(manifest: dict[str, Any]) -> None:
        for task in tasks:
            manifest["metrics"][task]["metrics"] = {"kappa_quadratic": kappa, "accuracy": accuracy}
            manifest["metrics"][task]["intervals"] = {"kappa_quadratic": KAPPA[1:], "accuracy": ACCURACY[1:]}

    return edit


def measured(task: str, **changes: object) -> Edit:
    return lambda manifest: manifest["metrics"][task].update(changes)


def without(task: str) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["tasks"] = [each for each in manifest["tasks"] if each["name"] != task]
        for part in ("calibration", "metrics"):
            del manifest[part][task]

    return edit


def old(manifest: dict[str, Any]) -> None:
    """Make it what an earlier release wrote."""
    manifest["version"] = 1
    for found in manifest["metrics"].values():
        del found["test_fingerprint"]


def verdicts(promotion: promote_module.Promotion) -> dict[tuple[str, str], str]:
    return {(each.task, each.metric): each.verdict for each in promotion.comparison.figures}


def test_a_better_version_becomes_the_champion(registry: Registry) -> None:
    registry.add()
    registry.add(figures(0.65, 0.8))
    promotion = registry.promoted()
    assert (promotion.before, promotion.after, promotion.comparison.objections) == (1, 2, ())
    kinds = {"kappa_quadratic": "better", "accuracy": "equal"}
    assert verdicts(promotion) == {(task, name): kind for task in ("dr", "amd") for name, kind in kinds.items()}


def test_a_version_that_is_worse_within_the_interval_becomes_the_champion(registry: Registry) -> None:
    registry.add()
    registry.add(figures(0.5, 0.76))
    assert set(verdicts(registry.promoted("2")).values()) == {"worse within the interval"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (figures(0.49, 0.9, ("dr",)), "dr: quadratic kappa 0.490 against the champion's 0.600, which lies in [0.500"),
        (
            figures(0.9, 0.74, ("amd",)),
            "amd: accuracy 0.740 against the champion's 0.800, which lies in [0.750, 0.850]",
        ),
    ],
    ids=["kappa", "accuracy"],
)
def test_one_figure_that_is_worse_beyond_the_interval_is_enough(registry: Registry, change: Edit, reason: str) -> None:
    registry.add()
    registry.add(figures(0.9, 0.9), change)
    assert registry.refused().startswith(reason)
    assert ";" not in registry.refused()


def test_without_an_interval_the_figure_itself_is_the_bound(registry: Registry) -> None:
    registry.add(measured("dr", intervals={}))
    registry.add(figures(0.599, 0.8))
    assert registry.refused() == "dr: quadratic kappa 0.599 against the champion's 0.600, which has no interval"


def test_an_undefined_figure_is_no_objection(registry: Registry) -> None:
    registry.add(measured("dr", metrics={"kappa_quadratic": None, "accuracy": 0.8}))
    registry.add(measured("amd", metrics={"accuracy": 0.8}))
    found = verdicts(registry.promoted())
    assert found["dr", "kappa_quadratic"] == found["amd", "kappa_quadratic"] == "undefined"


def test_other_test_images_are_no_basis(registry: Registry) -> None:
    registry.add()
    registry.add(figures(0.9, 0.9), measured("amd", test_fingerprint="f" * 64))
    reason = registry.refused()
    assert reason.startswith(f"amd: it was measured on other test images, of fingerprint {'f' * 64}; the champion's is")


@pytest.mark.parametrize(
    ("champion", "candidate", "whose"),
    [([old], [], "champion's"), ([], [old], "candidate's"), ([old], [old], "candidate's")],
    ids=["old champion", "old candidate", "both old"],
)
def test_a_bundle_of_an_earlier_release_was_measured_on_other_images(
    registry: Registry, champion: list[Edit], candidate: list[Edit], whose: str
) -> None:
    registry.add(*champion)
    registry.add(figures(0.9, 0.9), *candidate)
    reason = f"the {whose} bundle, of an earlier release, names no test fingerprint"
    assert registry.refused() == f"dr: {reason}; amd: {reason}"


def test_a_task_that_the_champion_grades_must_stay(registry: Registry) -> None:
    registry.add()
    registry.add(figures(0.9, 0.9), without("amd"))
    assert registry.refused() == "amd: the champion grades it, the candidate does not"


def test_a_task_may_be_added(registry: Registry) -> None:
    registry.add(without("amd"))
    registry.add(figures(0.1, 0.1, ("amd",)))
    assert {task for task, _ in verdicts(registry.promoted())} == {"dr"}


def test_grades_of_other_names_are_another_task(registry: Registry) -> None:
    registry.add()
    registry.add(lambda manifest: manifest["tasks"][0].update(grades=["a", "b", "c", "d", "e"]))
    assert registry.refused().startswith("dr: its grades are a, b, c, d, e; the champion's are normal, NPDR I")


def test_force_overrules_and_keeps_the_reasons(registry: Registry) -> None:
    registry.add()
    registry.add(figures(0.1, 0.9), without("amd"))
    promotion = registry.promoted(force=True)
    assert promotion.after == 2
    assert len(promotion.comparison.objections) == 2
    assert verdicts(promotion) == {
        ("dr", "kappa_quadratic"): "worse",
        ("dr", "accuracy"): "better",
        ("amd", "kappa_quadratic"): "not comparable",
        ("amd", "accuracy"): "not comparable",
    }


def test_the_champion_itself_and_the_way_back(registry: Registry) -> None:
    registry.add()
    registry.add()
    assert registry.promoted("champion") == registry.promoted("1")
    assert registry.promoted("2").before == 1
    assert registry.promoted("1").before == 2


def test_without_a_champion_it_is_set(registry: Registry) -> None:
    registry.add(old)
    registry.add(figures(0.1, 0.1))
    connect(registry.config).delete_registered_model_alias(registry.name, "champion")
    promotion = registry.promoted()
    assert (promotion.before, promotion.after, promotion.comparison.figures) == (None, 2, ())


def test_an_unknown_version_is_named(registry: Registry) -> None:
    registry.add()
    with pytest.raises(BundleError, match="registered under this name: 1, candidate, champion"):
        promote(registry.config, registry.name, "7")
    with pytest.raises(BundleError, match="registered under this name: nothing"):
        promote(registry.config, "nobody", "1")


def test_a_bundle_that_is_not_what_was_registered_is_never_promoted(registry: Registry) -> None:
    registry.add()
    registry.add()
    manifest = registry.sources[1] / MANIFEST
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(BundleError, match="no longer the one that was registered"):
        promote(registry.config, registry.name, "2", force=True)
    shutil.rmtree(registry.sources[1])
    with pytest.raises(BundleError, match="not a model bundle"):
        promote(registry.config, registry.name, "2", force=True)
    assert registry.champion() == 1


def test_a_champion_whose_bundle_is_gone_can_be_replaced_by_force(registry: Registry) -> None:
    registry.add()
    registry.add()
    shutil.rmtree(registry.sources[0])
    assert registry.refused().startswith("the champion's bundle cannot be read (not a model bundle")
    assert registry.promoted(force=True).after == 2


def test_a_champion_that_was_moved_meanwhile_stays(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        registry.add()

    def slow(*arguments: Any) -> Any:
        move_champion(registry.config, registry.name, 3, present=1)
        return compare(*arguments)

    compare = promote_module.compare
    monkeypatch.setattr(promote_module, "compare", slow)
    with pytest.raises(PromotionError, match="moved meanwhile: version 3, which was version 1"):
        promote(registry.config, registry.name, "2")
    assert registry.champion() == 3


@pytest.fixture
def two_runs(registry: Registry, made: Made) -> Registry:
    """A champion, and a version that errs on the same images and on five more: within the champion's intervals."""
    for number, table in enumerate((made.predictions, worsened(made.predictions, 5))):
        folder = RunFolder(Store(str(registry.folder / f"run-{number}")))
        folder.write_predictions(table)
        summaries = summarise(table, split="test", resamples=200, seed=0)
        made.build(folder.store.local_path / BUNDLE, predictions=table, summaries=summaries, name=f"run-{number}")
        registry.register(folder.store.local_path / BUNDLE)
    return registry


def test_predictions_that_are_at_hand_are_compared_in_pairs(
    two_runs: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.match(r"dr: quadratic kappa .*, a paired difference in \[-\d\.\d+, -\d\.\d+\]; ", two_runs.refused())
    promotion = two_runs.promoted(force=True)
    assert all(each.paired for each in promotion.comparison.figures)
    found = verdicts(promotion)
    assert found["dr", "accuracy"] == found["amd", "accuracy"] == "worse"
    assert run(["models", "promote", f"{two_runs.name}/1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"dr +│ accuracy +│ 0.\d+ +│ 0.\d+ \(difference \[\+0.0\d+, \+0.1\d+\]\) │ better ", printed), (
        printed
    )
    assert two_runs.champion() == 1


def test_the_command_line(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    registry.add()
    registry.add(figures(0.65, 0.78))
    registry.add(figures(0.1, 0.1))
    storage = ("--storage", str(registry.folder))

    assert run(["models", "promote", f"{registry.name}/2", *storage]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"dr +│ quadratic kappa │ 0.600 \[0.500, 0.700\] │ 0.650 +│ better ", printed), printed
    assert re.search(r"amd +│ accuracy +│ 0.800 \[0.750, 0.850\] │ 0.780 +│ worse within the interval ", printed)
    assert printed.splitlines()[-1] == "champion: version 1 -> 2"

    assert run(["models", "promote", f"{registry.name}@champion", *storage]) == 0
    assert capsys.readouterr().out == f"version 2 of {registry.name} is the champion already; nothing was changed\n"

    assert run(["models", "promote", f"{registry.name}@candidate", *storage]) == 2
    refusal = capsys.readouterr()
    assert refusal.out == ""
    (line,) = refusal.err.strip().splitlines()
    assert line.startswith(
        f"error: version 3 of {registry.name} may not take the place of its champion, version 2: dr:"
    )
    assert line.endswith("; register a version that is as good on the champion's test images, or add --force")
    assert registry.champion() == 2

    assert run(["models", "promote", f"{registry.name}/3", "--force", *storage]) == 0
    printed = capsys.readouterr().out
    assert printed.count("overruled: ") == 4
    assert printed.splitlines()[-1] == "champion: version 2 -> 3"

    assert run(["models", "promote", f"{registry.name}/1", "--json", *storage]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["before"], told["after"]) == (registry.name, 3, 1)
    assert told["comparison"]["objections"] == []
    assert told["comparison"]["figures"][0] == {
        "task": "dr",
        "metric": "kappa_quadratic",
        "champion": 0.1,
        "candidate": 0.6,
        "interval": [0.5, 0.7],
        "paired": False,
        "verdict": "better",
    }

    assert run(["models", "promote", registry.name, *storage]) == 2
    assert f"write {registry.name}/VERSION or {registry.name}@candidate" in capsys.readouterr().err
    assert registry.champion() == 1


def test_show_names_the_test_fingerprint(registry: Registry, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.add()
    metrics = Bundle.load(built).manifest.metrics
    assert run(["models", "show", registry.name, "--storage", str(registry.folder)]) == 0
    printed = capsys.readouterr().out
    for task in ("dr", "amd"):
        assert re.search(rf"^test\.{task}\.fingerprint +{metrics[task].test_fingerprint}$", printed, re.MULTILINE)
