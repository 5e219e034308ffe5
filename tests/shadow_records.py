"""Records of what two models answered, for the tests of shadows."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from retina_ray.serving.shadow_log import ShadowAnswer, ShadowGrade, ShadowRecord

START = datetime(2026, 1, 1, tzinfo=UTC)


def sha(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def said(grade: int, latency_ms: float = 10.0, *, task: str = "dr", num_grades: int = 5) -> ShadowAnswer:
    probabilities = tuple(0.6 if index == grade else 0.4 / (num_grades - 1) for index in range(num_grades))
    return ShadowAnswer(tasks={task: ShadowGrade(grade=grade, probabilities=probabilities)}, latency_ms=latency_ms)


def record(
    index: int, champion: ShadowAnswer, candidate: ShadowAnswer | None, *, image: object = None, hashed: str = "new"
) -> ShadowRecord:
    return ShadowRecord(
        time=START + timedelta(seconds=index),
        image=sha(index if image is None else image),
        served_as="main",
        champion="old",
        candidate=hashed,
        champion_answer=champion,
        candidate_answer=candidate,
    )


def records(champion: Sequence[int], candidate: Sequence[int]) -> list[ShadowRecord]:
    return [record(i, said(a), said(b)) for i, (a, b) in enumerate(zip(champion, candidate, strict=True))]


def readers(rng: np.random.Generator, images: int, *accuracy: float) -> tuple[list[int], ...]:
    """Return true grades, then those of readers who are right this often and else anywhere."""
    truth = rng.choice(5, size=images, p=(0.5, 0.2, 0.15, 0.1, 0.05))
    others = (np.where(rng.random(images) < each, truth, rng.integers(5, size=images)) for each in accuracy)
    return truth.tolist(), *(other.tolist() for other in others)
