"""Compares a candidate with the champion on the photographs that both have seen, see ``shadow_log``.

Intervals come from resampled photographs. Records name no patient, so the two eyes of one count as independent, and
the intervals are somewhat too narrow. Letters: ``K`` grades, ``R`` resamples, ``n`` records. What is not here:
recording, and the decision to promote.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from retina_ray.errors import DataError
from retina_ray.metrics.bootstrap import percentile_interval
from retina_ray.serving.shadow_log import ShadowAnswer, ShadowRecord

Truth = Mapping[str, Mapping[str, int]]
"""Grades by image (SHA-256 of its file) and task; an image may lack a task."""

LATENCY_RECORDS = 20_000
"""Latencies are compared on the latest records, at most this many."""

_QUANTILES = {"p50": 0.5, "p99": 0.99}
_CHUNK_VALUES = 4_000_000
"""Latencies held at once; bounds memory at some 100 MB."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GRADE = re.compile(r"[0-9]{1,3}")

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Pair(NamedTuple):
    """Who is compared with whom."""

    served_as: str
    champion: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; nan where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AgainstTruth:
    """Quadratic kappa of both models with the truth.

    Attributes:
        images: that have a true grade.
        champion: its kappa.
        candidate: its kappa.
        difference: candidate minus champion on the same photographs.
    """

    images: int
    champion: Estimate
    candidate: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task.

    Attributes:
        agreement: share of photographs with the same grade, with Wilson's interval.
        kappa: quadratic kappa between both; nan where all grades are one and the same.
        truth: both against the truth; None where it is known of no photograph.
    """

    agreement: Estimate
    kappa: Estimate
    truth: AgainstTruth | None


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """One quantile of the latencies, milliseconds.

    Attributes:
        champion: its quantile.
        candidate: its quantile.
        difference: candidate minus champion, with an interval from records drawn together.
    """

    champion: float
    candidate: float
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside the champion.

    Attributes:
        pair: who they are.
        records: of photographs that both were asked about, repetitions included.
        failures: how many of these the candidate gave no answer to.
        images: different photographs that both graded.
        tasks: by task that both grade.
        latency: ``p50`` and ``p99`` over the latest `LATENCY_RECORDS` records that both answered.
    """

    pair: Pair
    records: int
    failures: int
    images: int
    tasks: dict[str, TaskComparison]
    latency: dict[str, LatencyComparison]


def by_pair(records: Iterable[ShadowRecord]) -> dict[Pair, list[ShadowRecord]]:
    """Return the records of each pair of models by time; the pair that was recorded last comes last."""
    found: dict[Pair, list[ShadowRecord]] = {}
    for record in sorted(records, key=lambda record: record.time):
        pair = Pair(record.served_as, record.champion, record.candidate)
        kept = found.pop(pair, [])
        kept.append(record)
        found[pair] = kept
    return found


def compare(
    records: Iterable[ShadowRecord],
    truth: Truth | None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare the two models of a shadow log.

    A photograph that was seen several times counts once among the grades, and each time among the latencies.

    Args:
        records: of one pair of models, see `by_pair`.
        truth: true grades, of any images, see `read_truth`; None: not known.
        resamples: R, at least 1.
        level: of the intervals, in (0, 1).
        seed: of the resamples.

    Raises:
        DataError: no records or records of several pairs, no photograph or no task that both graded, models with
            different numbers of grades, or a truth that does not fit the records.
    """
    pairs = by_pair(records)
    if len(pairs) != 1:
        names = "; ".join(f"{pair.served_as}: {pair.champion} and {pair.candidate}" for pair in pairs)
        raise DataError("need the records of one champion and one candidate", names or "no records", "choose one pair")
    [(pair, asked)] = pairs.items()
    answered = [(record, record.candidate_answer) for record in asked if record.candidate_answer is not None]
    if not answered:
        raise DataError("the candidate has graded no photograph", f"{len(asked)} records", "look in its log for why")
    graded: dict[str, tuple[ShadowAnswer, ShadowAnswer]] = {}
    for record, candidate in answered:
        graded.setdefault(record.image, (record.champion_answer, candidate))
    num_grades = _num_grades(*next(iter(graded.values())))
    if truth is not None:
        _require_fit(truth, num_grades, graded.keys())
    rng = np.random.default_rng(seed)
    latest = answered[-LATENCY_RECORDS:]
    return Comparison(
        pair=pair,
        records=len(asked),
        failures=len(asked) - len(answered),
        images=len(graded),
        tasks={
            task: _compare_task(_triples(task, graded, truth or {}), count, rng, resamples=resamples, level=level)
            for task, count in num_grades.items()
        },
        latency=_compare_latencies(
            np.array([record.champion_answer.latency_ms for record, _ in latest]),
            np.array([candidate.latency_ms for _, candidate in latest]),
            rng,
            resamples=resamples,
            level=level,
        ),
    )


def read_truth(file: Path) -> dict[str, dict[str, int]]:
    """Read true grades from a CSV file.

    Its columns are ``image``, the SHA-256 of the photograph's file as 64 hexadecimal digits, and one per task; an
    empty cell is a grade that is not known.

    Raises:
        DataError: it cannot be read, lacks a column, or has a line that is not as described; names file and line.
    """
    truth: dict[str, dict[str, int]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _require_header(header, file)
            for cells in reader:
                image, grades = _truth_of(cells, header, f"{file}:{reader.line_num}")
                if image in truth:
                    raise DataError("an image has two lines of truth", f"{file}:{reader.line_num}", "keep one of them")
                truth[image] = grades
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the truth cannot be read ({error})", str(file), "name a CSV file in UTF-8") from error
    return truth


def _require_header(header: list[str], file: Path) -> None:
    if "image" not in header or len(header) < 2 or len(set(header)) < len(header) or "" in header:
        fix = "write as its first line `image` and the tasks' names, each once"
        raise DataError(f"the truth in {file} has other columns", ", ".join(header) or "none", fix)


def _truth_of(cells: list[str], header: list[str], where: str) -> tuple[str, dict[str, int]]:
    """Return the image and its grades by task. What a cell holds is not repeated: it may be a patient's name."""
    if len(cells) != len(header):
        raise DataError(f"need {len(header)} cells in a line of truth, got {len(cells)}", where, "complete the line")
    texts = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    image = texts.pop("image").lower()
    if not _SHA256.fullmatch(image):
        raise DataError("the image is no SHA-256 of a file", where, "write what `sha256sum PHOTOGRAPH` prints")
    for task, text in texts.items():
        if text and not _GRADE.fullmatch(text):
            raise DataError(f"the grade of {task} is no number", where, "write a grade from 0, or nothing")
    return image, {task: int(text) for task, text in texts.items() if text}


def _num_grades(champion: ShadowAnswer, candidate: ShadowAnswer) -> dict[str, int]:
    """Return K of each task that both models grade."""
    found = {}
    for task, answer in champion.tasks.items():
        if task in candidate.tasks:
            before, after = len(answer.probabilities), len(candidate.tasks[task].probabilities)
            if before != after:
                fix = "compare models of the same grades"
                raise DataError(f"the models tell different numbers of grades of {task}", (before, after), fix)
            found[task] = before
    if not found:
        tasks = f"{', '.join(champion.tasks)} and {', '.join(candidate.tasks)}"
        raise DataError("the models have no task in common", tasks, "shadow with a candidate of the same tasks")
    return found


def _require_fit(truth: Truth, num_grades: Mapping[str, int], images: Iterable[str]) -> None:
    known = [truth[image] for image in images if image in truth]
    if not known:
        fix = "hash the photographs' files as they were sent"
        raise DataError("the truth names none of the photographs in the log", f"{len(truth)} images", fix)
    for task, grade in (item for grades in known for item in grades.items()):
        if task not in num_grades:
            names = ", ".join(num_grades)
            raise DataError("the truth is of a task that not both models grade", task, f"keep the columns of {names}")
        if not 0 <= grade < num_grades[task]:
            fix = f"write grades from 0 to {num_grades[task] - 1}"
            raise DataError(f"the truth holds a grade of {task} that the models do not know", grade, fix)


def _triples(
    task: str, graded: Mapping[str, tuple[ShadowAnswer, ShadowAnswer]], truth: Truth
) -> Iterator[tuple[int, int, int]]:
    """Yield champion's, candidate's and true grade of each photograph, -1 where the truth is not known."""
    for image, (champion, candidate) in graded.items():
        yield champion.tasks[task].grade, candidate.tasks[task].grade, truth.get(image, {}).get(task, -1)


def _compare_task(
    triples: Iterable[tuple[int, int, int]],
    num_grades: int,
    rng: np.random.Generator,
    *,
    resamples: int,
    level: float,
) -> TaskComparison:
    """Compare the grades of one task.

    A resample of photographs is a multinomial draw from the table of grades, at a cost that does not grow with them.
    """
    champion, candidate, true = np.array(list(triples), dtype=np.int64).T
    table = np.zeros((num_grades, num_grades), dtype=np.int64)
    np.add.at(table, (champion, candidate), 1)
    [kappas] = _kappas(table, [()], rng, resamples)
    against = None
    known = true >= 0
    if known.any():
        cube = np.zeros((num_grades,) * 3, dtype=np.int64)
        np.add.at(cube, (champion[known], candidate[known], true[known]), 1)
        of_champion, of_candidate = _kappas(cube, [(1,), (0,)], rng, resamples)
        difference = (of_candidate[0] - of_champion[0], of_candidate[1] - of_champion[1])
        estimates = (_estimate(*each, level) for each in (of_champion, of_candidate, difference))
        against = AgainstTruth(int(known.sum()), *estimates)
    return TaskComparison(wilson(int(np.trace(table)), int(table.sum()), level), _estimate(*kappas, level), against)


def wilson(successes: int, trials: int, level: float) -> Estimate:
    """Return a share with its score interval (Wilson 1927), which holds near 0 and 1 too.

    Args:
        successes: of the trials.
        trials: at least 1.
        level: of the interval, in (0, 1).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0))


def quadratic_kappa(tables: npt.NDArray[Any]) -> Floats:
    """Return Cohen's kappa with quadratic weights of each table (..., K, K) of counts, nan where undefined."""
    grade = np.arange(tables.shape[-1], dtype=np.float64)
    weights = (grade[:, None] - grade) ** 2
    total = tables.sum(axis=(-2, -1))
    chance = tables.sum(axis=-1)[..., :, None] * tables.sum(axis=-2)[..., None, :]
    observed, expected = (tables * weights).sum(axis=(-2, -1)) * total, (chance * weights).sum(axis=(-2, -1))
    ratio: Floats = np.divide(observed, expected, out=np.full(np.shape(total), np.nan), where=expected > 0)
    return 1.0 - ratio


def _kappas(
    counts: Counts, summed: list[tuple[int, ...]], rng: np.random.Generator, resamples: int
) -> list[tuple[float, Floats]]:
    """Return kappa and its resamples (R,) for each two-way table that is left when some axes are summed over."""
    total = counts.sum()
    drawn = rng.multinomial(total, counts.ravel() / total, size=resamples).reshape(-1, *counts.shape)
    return [
        (
            float(quadratic_kappa(counts.sum(axis=axes))),
            quadratic_kappa(drawn.sum(axis=tuple(axis + 1 for axis in axes))),
        )
        for axes in summed
    ]


def _compare_latencies(
    champion: Floats, candidate: Floats, rng: np.random.Generator, *, resamples: int, level: float
) -> dict[str, LatencyComparison]:
    count = len(champion)
    levels = list(_QUANTILES.values())
    chunk = max(1, _CHUNK_VALUES // count)
    parts = []
    for start in range(0, resamples, chunk):
        drawn = rng.integers(count, size=(min(chunk, resamples - start), count))
        parts.append(np.quantile(candidate[drawn], levels, axis=1) - np.quantile(champion[drawn], levels, axis=1))
    samples = np.concatenate(parts, axis=1)
    before, after = np.quantile(champion, levels), np.quantile(candidate, levels)
    return {
        name: LatencyComparison(
            float(before[index]),
            float(after[index]),
            _estimate(float(after[index] - before[index]), samples[index], level),
        )
        for index, name in enumerate(_QUANTILES)
    }


def _estimate(value: float, samples: Floats, level: float) -> Estimate:
    return Estimate(value, *percentile_interval(samples, level))
