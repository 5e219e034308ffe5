"""Ingest of full-size photographs: the whole way, and decoding with resizing alone, against plain and fast rivals.

Run with ``python benchmarks/ingest.py PHOTOGRAPHS WORK``; PHOTOGRAPHS is a folder of JPEG files, which are repeated
with another comment each until there are enough. Writes ``benchmarks/results/ingest.json`` and ``.md``.
"""

import argparse
import hashlib
import io
import multiprocessing
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from benchmarks.in_turn import in_turn, table, write
from retina_ray.data.decode import decode_photograph
from retina_ray.data.ingest import ingest
from retina_ray.data.schema import task_of
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.workers import in_processes

SIZE = 512
NUMBER = 200
WORKERS = 2
JPEG_QUALITY = 92
ROUNDS = 5

Pixels = NDArray[np.uint8]


def repeated(photographs: Path, folder: Path) -> list[Path]:
    """Write the photographs again and again, each copy another file, and return the copies."""
    originals = sorted(path for path in photographs.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copies = []
    for number in range(NUMBER):
        data = originals[number % len(originals)].read_bytes()
        comment = b"%06d" % number
        marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(data[:2] + marker + data[2:])
        copies.append(path)
    return copies


def whole_ours(files: list[Path], out: Path) -> float:
    """Return images per second of `retina_ray.data.ingest`."""
    shutil.rmtree(out, ignore_errors=True)
    rows = [SourceRow(path, path.name, path.name, "bench", {"dr": 0}) for path in files]
    begin = time.perf_counter()
    ingest(rows, str(out), tasks=(task_of("dr", 5),), image_size=SIZE, work=in_processes(WORKERS))
    return len(files) / (time.perf_counter() - begin)


def plain(path: Path, out: Path) -> str:
    """Do what ingest does, as it is commonly done: Pillow, a threshold, a square, a resize."""
    data = path.read_bytes()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    bright = np.asarray(image).max(axis=2) > 20
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    image = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(out / path.name, quality=JPEG_QUALITY, subsampling=0)
    return hashlib.sha256(data).hexdigest()


def whole_plain(files: list[Path], out: Path) -> float:
    """Return images per second of the plain way in as many processes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    begin = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(partial(plain, out=out), files, chunksize=8)
    return len(files) / (time.perf_counter() - begin)


def area(image: Pixels) -> Pixels:
    """Resize so that the short side is `SIZE`, each pixel the mean of those it stands for."""
    scale = SIZE / min(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def ours(data: bytes) -> Pixels:
    """Scaled inverse transform, then area filter."""
    return area(decode_photograph(data, name="bench", target=SIZE))


def cv2_full(data: bytes) -> Pixels:
    """Full decode, then area filter."""
    return area(np.asarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB), np.uint8))


def cv2_reduced(data: bytes) -> Pixels:
    """OpenCV's own quarter decode, the smallest that is large enough here."""
    reduced = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
    return area(np.asarray(cv2.cvtColor(reduced, cv2.COLOR_BGR2RGB), np.uint8))


def pillow_draft(data: bytes) -> Pixels:
    """Pillow's reduced decode, then its box filter."""
    image = Image.open(io.BytesIO(data))
    scale = SIZE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image.draft("RGB", size)
    return np.asarray(image.resize(size, Image.Resampling.BOX), np.uint8)


def torchvision_full(data: bytes) -> Pixels:
    """Torchvision's decoder and antialiased resize."""
    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return resize(image, [SIZE], antialias=True).permute(1, 2, 0).numpy()


class DaliFull:
    """DALI's CPU decoder and resize."""

    def __init__(self) -> None:
        self._data = b""

        @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
        def pipeline() -> Any:
            encoded = fn.external_source(lambda: [np.frombuffer(self._data, np.uint8)], batch=True, dtype=types.UINT8)
            image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
            return fn.resize(image, resize_shorter=SIZE, antialias=True)

        self._pipeline = pipeline(exec_dynamic=True)
        self._pipeline.build()

    def __call__(self, data: bytes) -> Pixels:
        """Decode and resize one file."""
        self._data = data
        (images,) = self._pipeline.run()
        return np.asarray(images.at(0), np.uint8)


def alone(function: Callable[[bytes], Pixels], files: list[bytes]) -> float:
    """Return images per second of one thread."""
    begin = time.perf_counter()
    for data in files:
        function(data)
    return len(files) / (time.perf_counter() - begin)


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    files = repeated(arguments.photographs, arguments.work / "photographs")
    data = [path.read_bytes() for path in files[:25]]
    height, width = decode_photograph(data[0], name="first").shape[:2]
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    decoders: dict[str, Callable[[bytes], Pixels]] = {
        "ours": ours,
        "cv2 full": cv2_full,
        "torchvision full": torchvision_full,
        "DALI full": DaliFull(),
        "cv2 reduced": cv2_reduced,
        "Pillow draft": pillow_draft,
    }
    differences = [float(np.abs(ours(each).astype(int) - cv2_full(each)).mean()) for each in data]
    decoding = in_turn({name: partial(alone, function, data) for name, function in decoders.items()}, ROUNDS)
    cv2.setNumThreads(-1)
    out = arguments.work / "out"
    whole = in_turn(
        {"ours": partial(whole_ours, files, out), "plain Pillow loop": partial(whole_plain, files, out)}, ROUNDS
    )
    difference = f"mean absolute difference of ours from full decode and area filter: {np.mean(differences):.3f} / 255"
    write(
        "ingest",
        {
            "images": NUMBER,
            "pixels": [width, height],
            "size": SIZE,
            "workers": WORKERS,
            "images_per_second": {"whole": whole, "decode and resize, one thread": decoding},
            "megapixels_per_second": {
                name: [rate * width * height / 1e6 for rate in rates] for name, rates in whole.items()
            },
            "mean_absolute_difference": differences,
        },
        {
            f"Whole ingest of {NUMBER} photographs of {width} x {height} to {SIZE} px, {WORKERS} processes": table(
                whole, ours="ours", unit="images/s"
            ),
            "Decode and resize alone, one thread": table(decoding, ours="ours", unit="images/s") + f"\n{difference}\n",
        },
    )


if __name__ == "__main__":
    main()
