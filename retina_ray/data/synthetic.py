"""Fundus photographs drawn from a seed, with known lesions, masks and grades: what tests and the demo train on.

`draw` makes one photograph, `write_synthetic` a data set. They prove that the code learns, not that it can grade eyes:
a score on these says nothing about patients. Anatomy, lesions and camera are in the files beside this one.
"""

import hashlib
import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from retina_ray.data.manifest import DatasetManifest, Encoding
from retina_ray.data.masks import encode_mask
from retina_ray.data.schema import KNOWN_TASKS, NO_GRADE
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.splits import assign_splits
from retina_ray.data.synthetic_anatomy import Rng, grow_eye, paint_retina, paint_vessels
from retina_ray.data.synthetic_camera import choose_camera, photograph
from retina_ray.data.synthetic_lesions import DRAWERS, Lesions, draw_distractors, paint_deep, paint_superficial
from retina_ray.data.workers import interrupts_held
from retina_ray.errors import DataError

SYNTHETIC_TASKS = ("dr", "amd", "arteriosclerosis")
MIN_SIZE = 32
_JPEG_QUALITY, _JPEG_SUBSAMPLING = 92, "420"


@dataclass(frozen=True)
class SyntheticSample:
    """A drawn photograph.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        mask: (4, S, S), planes in the order of `LESIONS`, where the task is ``dr``; else None.
        grades: the grade of the one task it was drawn for.
        laterality: ``left`` or ``right``.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_] | None
    grades: dict[str, int]
    laterality: str


def _rng(seed: int, task: str, *what: int) -> Rng:
    """Return the generator of one thing; other things' numbers do not move when one draws more."""
    key = (zlib.crc32(task.encode()), *what)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _check(task: str, grade: int, size: int) -> None:
    if task not in SYNTHETIC_TASKS:
        raise DataError("no drawing for this task", task, f"use one of {', '.join(SYNTHETIC_TASKS)}")
    if not 0 <= grade < KNOWN_TASKS[task].num_grades:
        raise DataError(f"{task} has no such grade", grade, f"use 0..{KNOWN_TASKS[task].num_grades - 1}")
    if size < MIN_SIZE:
        raise DataError("image size too small for lesions to be seen", size, f"use at least {MIN_SIZE}")


def draw(*, size: int, task: str, grade: int, seed: int, index: int) -> SyntheticSample:
    """Draw one photograph; the same arguments give the same pixels.

    Indices 2k and 2k + 1 are the right and left eye of one patient: one colour of retina, one camera. The same index
    at another grade is the same eye and camera with other lesions.

    Args:
        size: S, the side in pixels, at least 32.
        task: ``dr``, ``amd`` or ``arteriosclerosis``.
        grade: of that task.
        seed: of the data set, at least 0.
        index: of the photograph, at least 0.

    Raises:
        DataError: if the task cannot be drawn, has no such grade, or the size is too small to show lesions.
    """
    _check(task, grade, size)
    patient, left = divmod(index, 2)
    # Drawn at up to twice the size, so that small lesions and vessels keep their shape.
    n = max(size, min(2 * size, 192))
    patient_rng, eye_rng = _rng(seed, task, patient, 0), _rng(seed, task, index, 1)
    disease_rng, photo_rng = _rng(seed, task, index, 2, grade), _rng(seed, task, index, 3)

    camera = choose_camera(patient_rng)
    sclerosis = disease_rng.uniform(0.55, 1.0) if (task, grade) == ("arteriosclerosis", 1) else 0.0
    eye = grow_eye(eye_rng, patient_rng, right=not left, sclerosis=sclerosis)
    lesions = Lesions(n)
    draw_distractors(eye_rng, eye, lesions)
    if task in DRAWERS:
        DRAWERS[task](disease_rng, eye, lesions, grade)
    image = paint_retina(eye_rng, eye, n)
    paint_deep(disease_rng, eye, lesions, image)
    paint_vessels(eye_rng, eye, image)
    paint_superficial(disease_rng, eye, lesions, image)
    return SyntheticSample(
        image=photograph(photo_rng, image, eye.pigment, camera, size=size),
        mask=lesions.mask(size) if task == "dr" else None,
        grades={task: grade},
        laterality="left" if left else "right",
    )


@dataclass(frozen=True)
class _Order:
    """One photograph to be drawn and encoded."""

    task: str
    grade: int
    index: int
    split: str
    size: int
    seed: int
    encoding: Encoding

    def row(self) -> Row:
        """Draw it."""
        sample = draw(size=self.size, task=self.task, grade=self.grade, seed=self.seed, index=self.index)
        image = sample.image.tobytes()
        if self.encoding == "jpeg":
            image = simplejpeg.encode_jpeg(
                np.ascontiguousarray(sample.image), quality=_JPEG_QUALITY, colorsubsampling=_JPEG_SUBSAMPLING
            )
        return Row(
            image_id=f"{self.seed}-{self.task}-{self.index:06d}",
            group_id=_patient(self.seed, self.task, self.index),
            source="synthetic",
            split=self.split,
            image=image,
            width=self.size,
            height=self.size,
            sha256=hashlib.sha256(image).hexdigest(),
            grades=dict(sample.grades),
            laterality=sample.laterality,
            mask=None if sample.mask is None else encode_mask(sample.mask),
        )


def write_synthetic(
    out: str,
    *,
    tasks: Sequence[str],
    images_per_task: int,
    image_size: int,
    seed: int,
    encoding: Encoding = "jpeg",
    fractions: tuple[float, float, float] = (0.5, 0.25, 0.25),
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetManifest:
    """Draw a data set; the same arguments give the same fingerprint, whatever the number of workers.

    Each image carries the grade of one task only, as in SALL (section IV-A). Healthy eyes are half as many again as
    those of any other grade. A patient has one or two images, which stay in one split.

    Args:
        out: local folder or ``s3://`` prefix.
        tasks: of `SYNTHETIC_TASKS`.
        images_per_task: in all splits together, at least 4 for each grade.
        image_size: S, the side in pixels, at least 32.
        seed: another one draws other patients.
        encoding: ``jpeg`` or ``raw``.
        fractions: of the images, for train, validation and test.
        num_workers: processes that draw; 1 draws in this one.
        progress: called with the images done and the total, after each.

    Raises:
        DataError: if a task cannot be drawn, the images are too few or too small, or `out` holds a data set.
    """
    plan = _plan(tasks, images_per_task, size=image_size, seed=seed, encoding=encoding, fractions=fractions)
    writer = ShardWriter(
        out,
        tasks=tuple(KNOWN_TASKS[task] for task in tasks),
        image_size=image_size,
        encoding=encoding,
        source=f"synthetic, seed {seed}",
    )
    with writer:
        for done, row in enumerate(_rows(plan, num_workers), start=1):
            writer.add(row)
            if progress is not None:
                progress(done, len(plan))
    return writer.close()


def _plan(
    tasks: Sequence[str],
    images_per_task: int,
    *,
    size: int,
    seed: int,
    encoding: Encoding,
    fractions: tuple[float, float, float],
) -> list[_Order]:
    """Return who is to be drawn, in shuffled order."""
    for task in tasks:
        _check(task, 0, size)
        if images_per_task < 4 * KNOWN_TASKS[task].num_grades:
            fix = f"use at least {4 * KNOWN_TASKS[task].num_grades}, 4 for each grade"
            raise DataError(f"too few images for {task}", images_per_task, fix)
    rows: list[tuple[str, int, int]] = []
    for task in tasks:
        rng = _rng(seed, task)
        grades = _grades(images_per_task, KNOWN_TASKS[task].num_grades)
        eyes = [
            index
            for patient, both in enumerate(rng.random(images_per_task) < 0.5)
            for index in ((2 * patient, 2 * patient + 1) if both else (2 * patient + int(rng.integers(2)),))
        ]
        rows += [(task, grade, index) for grade, index in zip(grades, eyes[:images_per_task], strict=True)]
    all_grades = {
        task: np.array([grade if own == task else NO_GRADE for own, grade, _ in rows], np.int8) for task in tasks
    }
    groups = [_patient(seed, task, index) for task, _, index in rows]
    splits = assign_splits(groups, all_grades, fractions=fractions, seed=seed)
    orders = [
        _Order(task, grade, index, str(split), size, seed, encoding)
        for (task, grade, index), split in zip(rows, splits, strict=True)
    ]
    return [orders[i] for i in _rng(seed, "order").permutation(len(orders))]


def _grades(count: int, num_grades: int) -> list[int]:
    """Return `count` grades in ascending order, grade 0 half as frequent again as each other one."""
    bounds = np.rint(np.cumsum([1.5, *[1.0] * (num_grades - 1)]) / (num_grades + 0.5) * count)
    return [int(grade) for grade in np.searchsorted(bounds, np.arange(count), side="right")]


def _patient(seed: int, task: str, index: int) -> str:
    return f"{seed}-{task}-patient-{index // 2:06d}"


def _rows(plan: Sequence[_Order], num_workers: int) -> Iterator[Row]:
    if num_workers <= 1:
        yield from map(_Order.row, plan)
        return
    # Spawned: a forked copy of a process that has threads (a loader's, Ray's) can dead-lock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        with interrupts_held():
            rows = pool.map(_Order.row, plan, chunksize=16)
        yield from rows
