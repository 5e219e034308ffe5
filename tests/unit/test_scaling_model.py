"""The cost model of docs/scaling.md: its limits, a slow computation of the same, and the page's tables."""

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling
from benchmarks.in_turn import RESULTS
from benchmarks.scaling_model import (
    CORE_S,
    DECODE_344_S,
    DEEPMT_FLOPS,
    DEEPMT_PARAMETERS,
    G6,
    H100_FLOPS,
    L4_FLOPS,
    P5,
    PREDICTED,
    SALL_FLOPS,
    SALL_PARAMETERS,
    Cluster,
    Job,
    Link,
    all_reduce_s,
    buckets,
    efficiency,
    exposed_s,
    fetch_s,
    fit_link,
    predict,
    slowest_of,
    throughput,
)
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.methods import catalogue
from retina_ray.recipes import load_recipe

JOB = Job(batch=32, image_s=1e-3, parameters=25_000_000, load_s=1e-4, image_bytes=4e4)
WORKERS = (1, 2, 4, 8, 16, 64, 512)
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_one_worker_waits_for_nobody() -> None:
    step = predict(P5, JOB, 1)
    assert (step.stragglers_s, step.gradients_s, step.collectives_s, step.network_s) == (0, 0, 0, 0)
    assert step.compute_s == pytest.approx(0.032)
    assert efficiency(P5, JOB, 1) == 1.0


def test_the_parts_of_a_step_add_up_to_it() -> None:
    step = predict(P5, replace(JOB, load_s=2e-3), 16)
    assert min(step.losses.values()) > 0
    assert step.seconds == pytest.approx(step.compute_s + sum(step.losses.values()))
    assert throughput(P5, JOB, 16) == pytest.approx(16 * 32 / predict(P5, JOB, 16).seconds)


def around_a_ring(workers: int, size: float, link: Link) -> float:
    """Pass one of N pieces to the neighbour at a time: once round to add up, once round to hand out."""
    return sum(link.latency_s + size / workers / link.bytes_per_s for _ in range(2 * (workers - 1)))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("size", [0, 4, 10**6, 10**9])
def test_an_all_reduce_goes_around_rings_inside_and_between_nodes(workers: int, size: int) -> None:
    cluster = replace(P5, trees=False)
    group, nodes = min(workers, 8), max(1, workers // 8)
    # Each worker sends its part of what the node has through its own part of the node's network.
    part = replace(cluster.between, bytes_per_s=cluster.between.bytes_per_s / group)
    expected = around_a_ring(group, size, cluster.inside) + around_a_ring(nodes, size / group, part)
    assert all_reduce_s(cluster, workers, size) == pytest.approx(expected)


def test_trees_save_messages_and_no_bytes() -> None:
    ring = replace(P5, trees=False)
    assert all_reduce_s(ring, 512, 0) - all_reduce_s(P5, 512, 0) == pytest.approx((126 - 12) * 20e-6)
    assert all_reduce_s(ring, 512, 1e9) - all_reduce_s(P5, 512, 1e9) == pytest.approx((126 - 12) * 20e-6)
    assert all_reduce_s(ring, 16, 0) == all_reduce_s(P5, 16, 0)


def test_nodes_are_full() -> None:
    assert [P5.nodes(workers) for workers in (1, 7, 8, 16, 512)] == [1, 1, 1, 2, 64]
    with pytest.raises(ValueError, match="12 workers do not fill nodes of 8"):
        P5.nodes(12)


def moment_by_moment(cluster: Cluster, job: Job, workers: int, tick: float) -> float:
    """Go through the backward pass in ticks, sending whatever bucket is ready when nothing else travels."""
    backward = cluster.hides * job.backward * job.compute_s / job.accumulate
    waiting = list(buckets(job.gradient_bytes))
    sent, busy_until, now = 0.0, 0.0, 0
    while waiting:
        made = job.gradient_bytes * min(1.0, now * tick / backward if backward else 1.0)
        if now * tick >= busy_until and made >= sent + waiting[0] - 1:
            size = waiting.pop(0)
            sent += size
            busy_until = now * tick + all_reduce_s(cluster, workers, size)
        now += 1
    return busy_until - backward


@pytest.mark.parametrize("workers", [2, 8, 64])
@pytest.mark.parametrize("cluster", [P5, G6, replace(G6, hides=0.5), replace(P5, hides=0.0)])
@pytest.mark.parametrize("job", [JOB, replace(JOB, batch=128, accumulate=4), replace(JOB, parameters=200_000)])
def test_gradients_travel_beside_the_backward_pass(workers: int, cluster: Cluster, job: Job) -> None:
    tick = 1e-5
    found = moment_by_moment(cluster, job, workers, tick)
    assert exposed_s(cluster, job, workers) == pytest.approx(found, abs=tick * (1 + len(list(buckets(1e8)))))


def test_what_the_backward_pass_hides_is_all_but_the_last_bucket() -> None:
    *_, last = buckets(JOB.gradient_bytes)
    assert exposed_s(P5, replace(JOB, image_s=1.0), 64) == pytest.approx(all_reduce_s(P5, 64, last))
    whole = sum(all_reduce_s(P5, 64, size) for size in buckets(JOB.gradient_bytes))
    assert exposed_s(replace(P5, hides=0.0), JOB, 64) == pytest.approx(whole)


@given(st.integers(1, 10**10))
def test_buckets_hold_all_gradients(size: int) -> None:
    found = list(buckets(size))
    assert sum(found) == pytest.approx(size)
    assert found[0] <= 2**20
    assert max(found) <= 25 * 2**20
    assert set(found[1:-1]) <= {25 * 2**20}


def test_a_slow_disk_sets_the_pace() -> None:
    cluster, job = replace(P5, disk_bytes_per_s=1e6), replace(JOB, checkpoint_every_s=math.inf)
    step = predict(cluster, job, 64)
    assert step.saturates_first == "disk"
    assert step.busy["disk"] == pytest.approx(1.0)
    nodes = 8
    assert throughput(cluster, job, 64) == pytest.approx(nodes * 1e6 / job.image_bytes)


def test_a_slow_loader_sets_the_pace_and_one_on_the_same_cores_always_costs() -> None:
    slow = replace(JOB, load_s=4e-3)
    assert throughput(P5, slow, 1) == pytest.approx(250, rel=0.02)
    assert predict(P5, JOB, 1).loading_s == 0.0
    assert predict(replace(P5, loads_apart=False), JOB, 1).loading_s == pytest.approx(3.2e-3)


def test_every_node_fetches_everything_before_the_first_epoch() -> None:
    storage = replace(P5, storage_bytes_per_s=1e8, storage_limit_bytes_per_s=4e8)
    assert [fetch_s(storage, workers, 1e9) for workers in (1, 8, 32, 64)] == [10, 10, 10, 20]


def test_checkpoints_are_spread_over_the_steps_between_them() -> None:
    cluster = replace(P5, save_bytes_per_s=1e8)  # 400 MB in 4 s of 100 s
    step = predict(cluster, replace(JOB, checkpoint_every_s=100.0), 1)
    assert step.checkpoints_s / step.seconds == pytest.approx(0.04)
    assert predict(cluster, replace(JOB, checkpoint_every_s=1.0), 1).checkpoints_s == pytest.approx(4.0)
    assert predict(cluster, replace(JOB, checkpoint_every_s=math.inf), 1).checkpoints_s == 0.0


def test_small_batches_do_not_get_shorter_than_their_kernels_take_to_queue() -> None:
    job = replace(JOB, least_s=0.01)
    steps = [predict(P5, replace(job, batch=batch), 1) for batch in (1, 10, 20)]
    assert [step.compute_s for step in steps] == pytest.approx([0.01, 0.01, 0.02])
    assert predict(P5, replace(job, batch=4, accumulate=4), 1).compute_s == pytest.approx(0.04)


@given(
    image_s=st.floats(1e-5, 1.0),
    batch=st.integers(1, 512),
    parameters=st.integers(1000, 10**9),
    load_s=st.floats(0, 1.0),
    bandwidth=st.floats(1e6, 1e12),
    latency_s=st.floats(0, 1e-2),
    hides=st.floats(0, 1),
    jitter=st.floats(0, 0.5),
    trees=st.booleans(),
    apart=st.booleans(),
)
def test_more_of_anything_good_never_slows_a_step_down(
    *,
    image_s: float,
    batch: int,
    parameters: int,
    load_s: float,
    bandwidth: float,
    latency_s: float,
    hides: float,
    jitter: float,
    trees: bool,
    apart: bool,
) -> None:
    link = Link(bytes_per_s=bandwidth, latency_s=latency_s)
    cluster = replace(P5, between=link, trees=trees, hides=hides, jitter=jitter, loads_apart=apart)
    job = Job(batch=batch, image_s=image_s, parameters=parameters, load_s=load_s, image_bytes=1e5)
    steps = [predict(cluster, job, workers).seconds for workers in WORKERS]
    slack = 1 + 1e-9
    assert all(before <= after * slack for before, after in itertools.pairwise(steps))
    reached = [efficiency(cluster, job, workers) for workers in WORKERS]
    assert all(0 < share <= slack for share in reached)
    now = predict(cluster, job, 64).seconds
    better_clusters = (
        replace(cluster, between=replace(link, bytes_per_s=2 * bandwidth)),
        replace(cluster, between=replace(link, latency_s=latency_s / 2)),
        replace(cluster, trees=True),
        replace(cluster, hides=1.0),
        replace(cluster, jitter=0.0),
        replace(cluster, loads_apart=True),
        replace(cluster, disk_bytes_per_s=math.inf),
        replace(cluster, save_bytes_per_s=math.inf),
    )
    assert all(predict(better, job, 64).seconds <= now * slack for better in better_clusters)
    better_jobs = (replace(job, image_s=image_s / 2), replace(job, load_s=0.0), replace(job, parameters=1000))
    assert all(predict(cluster, better, 64).seconds <= now * slack for better in better_jobs)


@pytest.mark.parametrize("workers", [2, 8, 64, 512])
def test_the_slowest_of_many_is_as_far_out_as_in_a_lottery(workers: int) -> None:
    draw = random.Random(0)
    drawn = [max(draw.gauss(0, 1) for _ in range(workers)) for _ in range(20_000 // workers + 200)]
    assert slowest_of(workers) == pytest.approx(sum(drawn) / len(drawn), rel=0.15)
    assert slowest_of(1) == 0.0


@given(bandwidth=st.floats(1e6, 1e12), latency_s=st.floats(1e-7, 1e-2), workers=st.integers(2, 8))
def test_a_fit_finds_the_link_again(bandwidth: float, latency_s: float, workers: int) -> None:
    link = Link(bytes_per_s=bandwidth, latency_s=latency_s)
    sizes = (4, 2**14, 2**18, 2**22, 2**26, 2**34)
    found = fit_link({size: around_a_ring(workers, size, link) for size in sizes}, workers)
    assert found.latency_s == pytest.approx(latency_s, rel=1e-3)
    assert found.bytes_per_s == pytest.approx(bandwidth, rel=1e-3)


def test_times_that_fall_with_the_size_are_no_link() -> None:
    with pytest.raises(ValueError, match="larger messages do not take longer"):
        fit_link({4: 2e-3, 2**20: 1e-3}, 2)


@pytest.mark.parametrize(
    ("recipe", "stage", "expected"),
    [("sall", "student-dr-amd", SALL_PARAMETERS), ("deepmt_dr", "joint", DEEPMT_PARAMETERS)],
)
def test_the_predicted_networks_are_as_large_as_ours(recipe: str, stage: str, expected: int) -> None:
    config = load_recipe(recipe)
    plan = catalogue.plan(config, KNOWN_TASKS)
    (planned,) = [each for each in plan.stages if each.name == stage]
    with torch.device("meta"):
        network = catalogue.build(config.method.name, planned.settings).build_model(initial_weights=False)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == expected


def test_batches_are_those_of_the_recipes() -> None:
    _, jobs = PREDICTED["p5.48xlarge, eight H100 a node"]
    assert jobs["SALL, 32 images a GPU"].batch == load_recipe("sall").train.global_batch_size
    assert jobs["DeepMT-DR, 2 images a GPU"].batch == load_recipe("deepmt_dr").train.global_batch_size
    assert JOB.checkpoint_every_s == load_recipe("sall").runtime.checkpoint.every_s


def test_steps_are_those_after_the_first_epoch_that_follow_on_each_other(tmp_path: Path) -> None:
    """Three steps an epoch; computing takes 1 s, and 3 s in step 5, loading a tenth, the first epoch ten times that."""
    lines, seconds = [], {"compute": 0.0, "forward": 0.0, "data_wait": 0.0}
    for step in range(1, 9):
        spent = 10.0 if step <= 3 else 3.0 if step == 5 else 1.0
        seconds = {name: seconds[name] + share * spent for name, share in zip(seconds, (1, 0.4, 0.1), strict=True)}
        kind = "step" if step % 3 else "epoch"
        figures = {f"{name}_s": value for name, value in seconds.items()}
        lines.append(json.dumps({"kind": kind, "step": step, "epoch": step / 3, **figures}))
    (tmp_path / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = scaling.step_figures(tmp_path)  # steps 5 and 8
    assert found["steps"] == 2
    assert [found[f"{name}_s"] for name in seconds] == pytest.approx([2.0, 0.8, 0.2])
    assert found["deviation_s"] == pytest.approx(math.sqrt(2))


def a_record() -> dict[str, Any]:
    """What `measure` would return on a machine that is just as the model says."""
    link, messages = Link(bytes_per_s=1e9, latency_s=5e-5), (4, 2**20, 2**26)
    alone = {"compute_s": 0.2, "forward_s": 0.08, "data_wait_s": 0.0, "deviation_s": 0.01, "steps": 50}
    checkpoint = {"parameters": 1_000_000, "bytes": 16e6, "seconds": 0.1}
    return {
        "batch": 32,
        "training": {"one": [alone] * 3, "two": [{**alone, "compute_s": 0.25}] * 3, "side by side": [alone] * 3},
        "all_reduce_s": {str(size): [around_a_ring(2, size, link)] * 3 for size in messages},
        "load_s": {"64 to 64 px": [1e-4] * 3, "344 to 299 px": [2e-3] * 3},
        "image_bytes": {"64": 2e3, "344": 4e4},
        "read_bytes_per_s": {"disk": [1e9] * 3, "page cache": [5e9] * 3},
        "checkpoints": {"sall_debug": checkpoint, "sall": checkpoint},
    }


def test_two_workers_are_predicted_from_one() -> None:
    cluster, job = scaling.here(a_record())
    assert cluster.inside.bytes_per_s == pytest.approx(1e9, rel=1e-3)
    assert (job.compute_s, job.backward, cluster.jitter) == pytest.approx((0.2, 0.6, 0.05))
    step = predict(cluster, job, 2)
    assert step.gradients_s == pytest.approx(2 * 2 * 5e-5 + 4e6 / 1e9, rel=0.01)  # two buckets, nothing hidden
    assert step.seconds == pytest.approx(0.2 * (1 + 0.05 * slowest_of(2)) + 0.0042 + 4 * 1e-4 + 0.0032, rel=0.01)
    steps, two, constants = scaling.measured_tables(a_record()).values()
    assert "| two | 250.0 | 250.0 | 250.0 |" in steps
    assert f"| {250 / 1e3 / step.seconds:.2f} |\n" in two
    assert "| gloo between two processes | 1.00 GB/s, 50 us a message |" in constants


@pytest.mark.parametrize("title", list(scaling.predicted_tables()))
def test_the_page_shows_what_the_model_says(title: str) -> None:
    assert scaling.predicted_tables()[title] in PAGE


@pytest.mark.parametrize(
    "value",
    [
        f"| {H100_FLOPS / 1e12:.0f} TFLOP/s |",
        f"| {L4_FLOPS / 1e12:.1f} TFLOP/s |",
        f"{SALL_FLOPS / 1e9:.1f} GFLOP an image in training, {SALL_PARAMETERS:,} parameters",
        f"{DEEPMT_FLOPS / 1e12:.1f} TFLOP an image, {DEEPMT_PARAMETERS:,} parameters",
        f"| jitter | {100 * P5.jitter:.0f} % |",
        *(
            f"{link.bytes_per_s / 1e9:g} GB/s, {1e6 * link.latency_s:.{digits}f} us"
            for link, digits in ((P5.inside, 1), (P5.between, 0), (G6.between, 0))
        ),
        f"{1 / DECODE_344_S:,.0f} images/s of 344 px",
        f"{1e3 * CORE_S:.1f} ms an image at 299 px",
        f"| {P5.disk_bytes_per_s / 1e9:.0f} GB/s |",
        f"{P5.storage_bytes_per_s / 1e6:.0f} MB/s a node, {P5.storage_limit_bytes_per_s / 1e9:.1f} GB/s in all",
        f"{P5.save_bytes_per_s / 1e6:.0f} MB/s, every {JOB.checkpoint_every_s:.0f} s",
    ],
)
def test_the_page_names_the_assumptions_that_the_model_makes(value: str) -> None:
    assert value in PAGE


def test_the_page_shows_what_was_measured() -> None:
    file = RESULTS / "scaling.json"
    if not file.exists():
        assert "That was not measured yet" in PAGE
        return
    for title, table in scaling.measured_tables(json.loads(file.read_text(encoding="utf-8"))).items():
        assert table in PAGE, title
