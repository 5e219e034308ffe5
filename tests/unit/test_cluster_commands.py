"""The commands of jobs, and of cluster/README.md: parsed by the programs they call, with configurations that hold."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from retina_ray.cli.job_arguments import prepare
from retina_ray.cli.options import resolve
from retina_ray.config import RunConfig, override
from retina_ray.config_runtime import RuntimeConfig
from retina_ray.orchestration.resources import cluster_resources, share_out
from retina_ray.recipes import RECIPES
from retina_ray.search.space import load_space
from tests.manifests.commands import parse
from tests.manifests.documents import CLUSTER, ROOT, Document, manifest, manifests, read

JOBS = [each["metadata"]["name"] for _, each in manifests() if each["kind"] == "RayJob"]
README = (CLUSTER / "README.md").read_text()
OTHERS = {"aws", "cat", "docker", "export", "git", "helm", "kubectl", "mkdir", "python", "umask"}
"""Programs of the README that are not ours and not Ray's."""


def job(name: str) -> tuple[list[str], dict[str, Any], RunConfig, Document]:
    """Return the verbs, parameters and configuration of a job, and the worker group that it runs on."""
    spec = manifest("RayJob", name)["spec"]
    verbs, given = parse(spec["entrypoint"])
    file = given["config_file"]
    settings = manifest("ConfigMap", name)["data"][file.name]
    recipe = given["recipe"] or (given["space"] if given.get("space") in RECIPES else "sall")
    config = resolve(recipe, None, given["assignments"], name=given["name"])
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    return verbs, given, override(config, yaml.safe_load(settings)), group


@pytest.mark.parametrize("name", JOBS)
def test_a_job_begins_anew_as_it_goes_on(name: str) -> None:
    verbs, given, config, _ = job(name)
    assert verbs[0] == "retina-ray"
    assert given["resume"] is True, "the operator runs the same command on another cluster"
    assert config.runtime.address == "auto"
    assert config.runtime.storage.startswith("s3://"), "what has to outlive the cluster"
    assert config.data.path.startswith("s3://")


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_configuration_is_mounted_where_its_command_looks(name: str) -> None:
    _, given, _, _ = job(name)
    head = manifest("RayJob", name)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [volume] = [each["name"] for each in head["volumes"] if each.get("configMap", {}).get("name") == name]
    [mount] = [each for each in head["containers"][0]["volumeMounts"] if each["name"] == volume]
    assert Path(mount["mountPath"]) == given["config_file"].parent


def test_a_training_has_a_gpu_for_each_worker() -> None:
    _, _, config, group = job("retina-ray-train")
    gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert config.runtime.workers == group["replicas"] * gpus
    assert config.runtime.use_gpu is True


def test_a_search_has_a_space_and_gpus_for_its_trials() -> None:
    _, given, _, group = job("retina-ray-tune")
    assert load_space(given["space"])
    assert (
        given["gpus_per_trial"] == group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert given["trials"] >= group["replicas"]


def readme_lines() -> Iterator[str]:
    """Yield the commands of the README, continued lines joined."""
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                yield command


LINES = list(readme_lines())


def calls(line: str) -> Iterator[list[str]]:
    """Yield the words of each command that a line runs, those within others too."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set("();|&"):
            if words:
                yield words
            words = []
        elif words or "=" not in token:  # a variable for the command
            words.append(token)
    for inner in re.findall(r"\$\((.*?)\)(?:\"|$| )", line):
        yield from calls(inner)


@pytest.mark.parametrize("line", LINES)
def test_the_readmes_commands_are_there(line: str) -> None:
    for words in calls(line):
        assert words[0] in {"retina-ray", "ray", *OTHERS}
        if words[0] in ("retina-ray", "ray"):
            parse(shlex.join(words))


@pytest.mark.parametrize("line", LINES)
def test_the_readmes_files_are_there(line: str) -> None:
    for name in re.findall(r"(?<!retina-ray/)\bcluster/[\w./-]*\w", line):
        assert (ROOT / name).exists(), name


def test_the_readmes_programs_are_python() -> None:
    programs = [words[2] for line in LINES for words in calls(line) if words[:2] == ["python", "-c"]]
    assert len(programs) == 2
    for program in programs:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, each.name) for each in node.names)


def test_a_training_that_waits_for_machines_fits_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = [line for line in LINES if "runtime.autoscaling=true" in line]
    _, given = parse(line)
    needs = prepare(given["line"], workers=given["num_workers"], gpus=given["num_gpus"]).needs
    runtime = RuntimeConfig.model_validate(needs.runtime)
    monkeypatch.setattr(ray, "nodes", list)
    expected = share_out(runtime, cluster_resources(runtime))
    assert expected.use_gpu
    groups = {each["groupName"]: each for each in manifest("RayCluster", "retina-ray")["spec"]["workerGroupSpecs"]}
    pod = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    on_kubernetes = {"CPU": float(pod["cpu"]), "GPU": float(pod["nvidia.com/gpu"])}
    types = read((CLUSTER / "aws.yaml").read_text())[0]["available_node_types"]
    assert types["gpu"]["node_config"]["InstanceType"] == "g6.2xlarge"
    for machine, most in (
        (on_kubernetes, groups["gpu"]["maxReplicas"]),
        ({"CPU": 8.0, "GPU": 1.0}, types["gpu"]["max_workers"]),
    ):
        assert expected.workers <= most
        assert share_out(runtime, [machine] * expected.workers) == expected


@pytest.mark.parametrize(
    "line", ["retina-ray jobs submit -- train --dat x", "retina-ray jobs submit -- serve up", "ray upp x"]
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 (of whichever parser)
        parse(line)


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (CLUSTER / target).exists(), target


def test_the_readmes_numbers_are_those_of_the_pages_that_they_come_from() -> None:
    rows = re.findall(r"^\|[^|]*\|([^|]*)\| ([\d.,-]+) \|[^|]*\]\(([^)]+)\) \|$", README, re.MULTILINE)
    assert len(rows) >= 10
    for what, number, page in rows:
        text = (CLUSTER / page).read_text()
        for each in (number, *re.findall(r"p99 ([\d,]+)", what)):
            assert re.search(rf"(?<![\d.,]){re.escape(each)}(?![\d,]|\.\d)", text), f"{each} of {what}"
        if "scaling" in page:
            assert re.search(rf"^\| {re.escape(what.strip())} \|.*\| {re.escape(number)} \|", text, re.MULTILINE), what


def test_the_readmes_panels_are_there() -> None:
    dashboard = (CLUSTER / "monitoring/grafana/dashboards/retina-ray.json").read_text()
    named = re.findall(r'"([A-Z][a-z ]+)"', README)
    assert named
    assert all(f'"title": "{name}"' in dashboard for name in named)


def test_every_value_that_is_all_zeros_is_explained() -> None:
    text = "".join(file.read_text() for file in [*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml")])
    zeros = set(re.findall(r"\b(?:[a-z]+-)?0{12,17}\b", text)) | (
        {"registry.example.org"} if "example.org" in text else set()
    )
    zeros |= set(re.findall(r"s3://bucket|mlflow\.internal", text))
    assert zeros
    for value in zeros:
        assert f"`{value}`" in README, value
