"""JPEG files to pixels of the network's size on the device: by DALI, by torchvision, and on the CPU as the product.

Decoding and bilinear resizing, batch by batch, in turn. DALI is tried with every share of the images that the product
tries for a GPU's JPEG engine. The roof is that of the memory: a decoded pixel is written once and read once.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.gpu import drawn
from benchmarks.gpu.part import Bench, Figure, Findings, installed, rates
from benchmarks.gpu.roofline import roof_of
from retina_ray.data.augment import matrices
from retina_ray.data.decode import decode_image
from retina_ray.data.torch_loader import drawing_pool
from retina_ray.data.warping import warp

SIZE = 299
SIDES = (344, 1024, 2048)
"""Of the files, pixels: what is stored for training, and photographs."""
FILES, BATCH, ROUNDS = 16, 64, 3
STEP_RATE = 4300.0
"""Images per second that SALL's training step is to take, and stored files have to be decoded at."""

Files = Sequence[NDArray[np.uint8]]


def measure(bench: Bench, findings: Findings) -> None:
    """Measure every decoder at every size."""
    findings.facts |= {"batch": BATCH, "distinct_files": FILES, "decoded_to": SIZE, "threads": _threads()}
    for side in (48,) if bench.dry else SIDES:
        files, batch = (2, 4) if bench.dry else (FILES, BATCH)
        encoded = [np.frombuffer(drawn.jpeg(image), np.uint8) for image in drawn.photographs(side, files)]
        batch_of = [encoded[number % files] for number in range(batch)]
        found = rates(
            _decoders(batch_of, side, bench, findings.left_out),
            batch,
            bench,
            findings,
            rounds=ROUNDS,
            at_least_s=0.5,
        )
        roof = roof_of(bench.device, dry=bench.dry).copied / (2 * 3 * side**2)
        findings.facts[f"bytes of a file of {side} px"] = float(np.mean([len(data) for data in encoded]))
        for name, values in found.items():
            target = STEP_RATE if side == SIDES[0] else None
            findings.figures[f"{name}, {side} px"] = Figure(values, "images/s", at_least=target, roof=roof)
            pixels = [value * side**2 / 1e6 for value in values]
            findings.figures[f"{name}, {side} px, pixels"] = Figure(pixels, "MP/s", roof=roof * side**2 / 1e6)


def _decoders(files: Files, side: int, bench: Bench, left_out: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Return what decodes the files once and leaves batches on the device, by name."""
    found = {f"CPU, {_threads()} threads": _on_cpu(files, side, bench.device)}
    if bench.device.type == "cuda":
        found["torchvision, nvJPEG"] = _by_torchvision(files, bench.device)
    else:
        left_out["torchvision, nvJPEG"] = "no GPU"
    if not installed("nvidia.dali"):
        left_out["DALI"] = "no nvidia.dali"
    elif bench.device.type == "cuda":
        from retina_ray.data.dali_loader import HARDWARE_SHARES

        for share in HARDWARE_SHARES:
            found[f"DALI, engine's share {share:g}"] = _by_dali(files, device="mixed", hw_decoder_load=share)
    else:
        found["DALI, on the CPU"] = _by_dali(files, device="cpu")
    return found


def _by_dali(files: Files, **decoder: Any) -> Callable[[], Any]:
    """Return a pipeline that works two batches ahead; of the many in a turn, that is for the same time as one."""
    from nvidia.dali import Pipeline, fn, types

    mixed = decoder["device"] == "mixed"
    pipeline = Pipeline(
        batch_size=len(files), num_threads=_threads(), device_id=0 if mixed else None, prefetch_queue_depth=2
    )
    with pipeline:
        data = fn.external_source(lambda: list(files), batch=True, dtype=types.UINT8)
        images = fn.decoders.image(data, output_type=types.RGB, jpeg_fancy_upsampling=True, **decoder)
        pipeline.set_outputs(fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=False))
    pipeline.build()
    return pipeline.run


def _by_torchvision(files: Files, device: torch.device) -> Callable[[], Any]:
    tensors = [torch.from_numpy(data.copy()) for data in files]

    def run() -> torch.Tensor:
        images = decode_jpeg(tensors, mode=ImageReadMode.RGB, device=device)
        return functional.interpolate(torch.stack(images).float(), size=(SIZE, SIZE), mode="bilinear")

    return run


def _on_cpu(files: Files, side: int, device: torch.device) -> Callable[[], Any]:
    """Return what decodes and resamples on a pool of threads, as the torch loader does."""
    pool = drawing_pool(_threads())
    (matrix,) = matrices(None, seed=0, epoch=0, rows=np.zeros(1, np.int64), in_size=side, out_size=SIZE)

    def one(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return warp(decode_image(data.tobytes(), encoding="jpeg", size=side), matrix, SIZE)

    def run() -> torch.Tensor:
        images = torch.from_numpy(np.stack(list(pool.map(one, files))))
        return (images.pin_memory() if device.type == "cuda" else images).to(device, non_blocking=True)

    return run


def _threads() -> int:
    return len(os.sched_getaffinity(0))
