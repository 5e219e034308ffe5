"""What a training measures of itself, as Ray's exporter of a node hands it out."""

import re
import time

import pytest
import ray
import requests

from retina_ray.orchestration.run_metrics import METRICS, RunMetrics

TAGS = {"run": "mine", "trial": "7", "stage": "student", "rank": "1"}


@ray.remote(num_cpus=0)
class Measuring:
    def __init__(self) -> None:
        self._metrics = RunMetrics(TAGS)

    def take(self) -> None:
        phases = {"compute_s": 4.0, "data_wait_s": 1.0, "forward_s": 1.5, "checkpoint_s": 5.0}
        rates = {"images_per_second": 32.0, "data_wait_share": 0.2, "train_dr": 0.7, "validation_criterion": 0.4}
        self._metrics.take({"kind": "restored", "step": 5000})
        self._metrics.take({"kind": "epoch", "step": 5010, "epoch": 1.0, **rates, **phases})
        slower = {"compute_s": 8.0, "data_wait_s": 7.0, "forward_s": 2.5, "checkpoint_s": 15.0}
        rates |= {"images_per_second": (32.0 * 5 + 10.0) / 15, "data_wait_share": 7 / 15}
        self._metrics.take({"kind": "step", "step": 5020, "epoch": 1.5, **rates, **slower})
        self._metrics.stalled(2.5)


def exported() -> dict[str, float]:
    """Return the values that this node exports of ours, by name and tags of their own."""
    found = {}
    (node,) = (each for each in ray.nodes() if each["Alive"])
    for line in requests.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10).text.splitlines():
        match = re.fullmatch(r"ray_(retina_ray_\w+)\{(.*)\} (\S+)", line)
        if match and all(f'{name}="{value}"' in match[2] for name, value in TAGS.items()):
            term = re.search(r'term="(\w+)"', match[2])
            found[match[1] + (f"/{term[1]}" if term else "")] = float(match[3])
    return found


def test_every_metric_reaches_the_exporter(ray_cluster: None) -> None:
    measuring = Measuring.remote()  # type: ignore[attr-defined]  # added by the decorator
    ray.get(measuring.take.remote())
    expected = {
        # of the last ten steps, which saw ten images in ten seconds
        "retina_ray_images_per_second": 1.0,
        "retina_ray_step_seconds": 1.0,
        "retina_ray_own_step_seconds": 0.7,
        "retina_ray_data_wait_share": 0.6,
        "retina_ray_checkpoint_share": 0.5,
        "retina_ray_train_loss/dr": 0.7,
        "retina_ray_validation_criterion": 0.4,
        "retina_ray_step": 5020.0,
        "retina_ray_epoch": 1.5,
        "retina_ray_stalled_seconds": 2.5,
    }
    until = time.monotonic() + 40
    while (found := exported()) != pytest.approx(expected):
        assert time.monotonic() < until, found
        time.sleep(0.2)
    assert {name.partition("/")[0] for name in expected} == set(METRICS)
