"""The same numbers on the GPU as on the CPU: a training step, several, the loaders' pixels, a served model's answers.

What is compared is what the product computes. Networks have the same weights and no dropout, whose draws differ
between devices. Limits are several times what float32 and float64 make of the same computation on a CPU. TF32 is off
for the steps, and as the product has it for a served model.

Differences of tensors are relative: the norm of the difference over the norm of the CPU's result in float32.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import drawn, networks
from benchmarks.gpu.part import Bench, Figure, Findings, installed
from retina_ray.data.augment import Augmentation
from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.shards import ShardedDataset
from retina_ray.serving.acceleration import accelerate
from retina_ray.serving.self_check import TOLERANCE
from retina_ray.training.engine import Engine
from retina_ray.training.step import train_step

CPU = torch.device("cpu")
STEPS = 3
FLOAT32, BFLOAT16 = "float32", "bf16"

LIMITS: dict[tuple[str, str, str], float | None] = {
    ("SALL", FLOAT32, "terms"): 1e-4,
    ("SALL", FLOAT32, "gradients"): 2e-2,
    ("SALL", FLOAT32, "state"): 5e-3,
    ("SALL", BFLOAT16, "terms"): 5e-2,
    ("SALL", BFLOAT16, "gradients"): None,
    ("SALL", BFLOAT16, "state"): None,
    ("DeepMT-DR", FLOAT32, "terms"): 1e-2,
    ("DeepMT-DR", FLOAT32, "gradients"): 1e-2,
    ("DeepMT-DR", FLOAT32, "state"): 5e-3,
    ("DeepMT-DR", BFLOAT16, "terms"): None,
    ("DeepMT-DR", BFLOAT16, "gradients"): None,
    ("DeepMT-DR", BFLOAT16, "state"): None,
}
"""Of relative differences, by network, the GPU's precision and what is compared; None: it is said and not judged.

Gradients of random weights magnify rounding: InceptionV3's differ by 3e-3 between float32 and float64, and by 0.4 under
bf16, DeepMT-DR's by 4e-5 and by 0.1.
"""

MEAN_GREY_LEVELS, MOST_GREY_LEVELS = 1.0, 9.0
"""By which pixels of the two loaders may differ, on average and at the 99.9th percentile: a GPU's inverse transform
rounds differently."""


@dataclass
class Trained:
    """What some steps came to, on the CPU.

    Attributes:
        terms: (n,) of the first step.
        gradients: (p,) before it, by fixed batch statistics: those of small batches make any gradient of random weights
            a matter of rounding.
        state: (s,) of weights and batch statistics after the last step.
    """

    terms: Tensor
    gradients: Tensor
    state: Tensor


def measure(bench: Bench, findings: Findings) -> None:
    """Compare everything."""
    findings.facts["steps"] = STEPS
    subjects: dict[str, tuple[Callable[[Bench, networks.Changes], networks.Subject], int]] = {
        "SALL": (lambda where, changes: networks.sall(where, {**changes, "method.dropout": 0.0}), 16),
        "DeepMT-DR": (_small_deepmt, 2),
    }
    for name, (make, count) in subjects.items():
        with findings.guarded(name):
            findings.figures |= _steps(name, make, 2 if bench.dry else count, bench)
    with findings.guarded("served"):
        findings.figures |= _answers(bench)
    for encoding in ("raw", "jpeg"):
        for other in _loaders(bench, findings.left_out):
            with findings.guarded(f"{other} loader, {encoding}"):
                findings.figures |= _pixels(encoding, other, bench)


def _small_deepmt(bench: Bench, changes: networks.Changes) -> networks.Subject:
    """Return the joint stage at a quarter of the paper's side, of which a CPU takes a step in seconds."""
    side = {} if bench.dry else {"data.image_size": 256, "method.segmentation.width": 32}
    return networks.deepmt(bench, "independent", {**side, **changes, "method.grading.dropout": 0.0})


def _steps(
    name: str, make: Callable[[Bench, networks.Changes], networks.Subject], count: int, bench: Bench
) -> dict[str, Figure]:
    """Return how far steps on the device are from those on the CPU."""
    steps = 1 if bench.dry else STEPS
    expected = _trained(make(replace(bench, device=CPU), {"train.precision": "fp32"}), count, steps=steps)
    figures = {}
    for precision, setting in ((FLOAT32, "fp32"), (BFLOAT16, "bf16")):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = _trained(make(bench, {"train.precision": setting}), count, steps=steps)
        for what in ("terms", "gradients", "state"):
            apart = _relative(getattr(found, what), getattr(expected, what))
            limit = LIMITS[name, precision, what]
            figures[f"{name}, {precision}, {what}"] = Figure(
                [apart], "of the CPU's", at_most=limit, must=limit is not None
            )
    return figures


def _trained(subject: networks.Subject, count: int, *, steps: int) -> Trained:
    """Train some steps on one batch, drawn on the CPU."""
    batch, engine = subject.batch(count), subject.engine()
    batch = replace(batch, images=batch.images.float())
    gradients = _gradients(subject, engine, batch)
    terms = [train_step(engine, [batch], step=step, lr=subject.config.optim.lr) for step in range(steps)]
    engine.guard.check()
    state = _flat(engine.network.state_dict().values())
    return Trained(torch.stack([term.double().cpu() for term in terms[0].values()]), gradients, state)


def _gradients(subject: networks.Subject, engine: Engine, batch: Batch) -> Tensor:
    """Return the gradients of a network whose batch statistics are fixed, and leave everything as it was."""
    counts = {name: number.clamp(min=1) for name, number in subject.method.counts(batch).items()}
    engine.network.eval()
    with engine.autocast():
        losses = subject.method.losses(engine.model, batch, counts)
    subject.method.total(losses).backward()
    found = _flat(each.grad for each in engine.network.parameters() if each.grad is not None)
    engine.optimizer.zero_grad(set_to_none=True)
    engine.network.train()
    return found


def _answers(bench: Bench) -> dict[str, Figure]:
    """Return how far the probabilities of networks rewritten for serving are from the CPU's, as the self-check asks."""
    subject = networks.sall(bench, {"method.dropout": 0.0})
    torch.manual_seed(0)
    network = subject.method.build_model(initial_weights=False)
    batch = networks.sall(replace(bench, device=CPU), {"train.precision": "fp32"}).batch(8).images
    with torch.no_grad():
        network.train()(batch)  # statistics of something, instead of none
    network.eval()
    with torch.inference_mode():
        expected = subject.method.probabilities(network, batch)
    network.to(bench.device)
    figures = {}
    for precision, limit in TOLERANCE.items():
        served = accelerate(subject.method, network, precision=precision, example=batch[:1].to(bench.device))
        with torch.inference_mode():
            found = subject.method.probabilities(served, batch.to(bench.device))
        apart = max(float((found[task].float().cpu() - expected[task]).abs().max()) for task in expected)
        figures[f"served, {precision}, probabilities"] = Figure([apart], "of 1", at_most=limit, must=True)
    return figures


def _loaders(bench: Bench, left_out: dict[str, str]) -> Sequence[str]:
    if installed("nvidia.dali"):
        return ("dali", "torch")
    left_out["DALI's pixels"] = "no nvidia.dali"
    return ("torch",)


def _pixels(encoding: str, backend: str, bench: Bench) -> dict[str, Figure]:
    """Return how far the pixels of a loader on the device are from those of the torch loader on the CPU."""
    stored, size = (64, 48) if bench.dry else (344, 299)
    images = drawn.photographs(stored, 8)
    data = drawn.shards(
        bench.work / f"pixels-{encoding}", images, encoding="jpeg" if encoding == "jpeg" else "raw", training=32
    )
    found, expected = _loaded(data, backend, size, bench.device), _loaded(data, "torch", size, CPU)
    apart = 255 * 0.225 * (found - expected).abs().flatten()  # the mean of the three deviations
    highest = float(torch.quantile(apart[:: max(1, apart.numel() // 10**6)], 0.999))
    name = f"{backend} loader, {encoding}"
    return {
        f"{name}, mean": Figure([float(apart.mean())], "grey levels", at_most=MEAN_GREY_LEVELS, must=True),
        f"{name}, 99.9 %": Figure([highest], "grey levels", at_most=MOST_GREY_LEVELS, must=True),
    }


def _loaded(data: ShardedDataset, backend: str, size: int, device: torch.device) -> Tensor:
    """Return an epoch's augmented images (N, 3, H, W), on the CPU."""
    rows = np.flatnonzero(data.splits == "train")
    loader = Loader(
        Samples(data, rows, data.grades),
        share=Share(0, 1, 8),
        augmentation=Augmentation(),
        image_size=size,
        backend="dali" if backend == "dali" else "torch",
        device=device,
        seed=0,
        num_threads=2,
        shuffle=True,
    )
    images = [batch.images.float().cpu() for batches in loader.epoch(0) for batch in batches]
    loader.close()
    return torch.cat(images)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([each.detach().double().cpu().flatten() for each in tensors])


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
