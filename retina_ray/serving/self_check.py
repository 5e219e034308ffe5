"""Whether a model may be served: its networks answer drawn photographs as grades, and rewritten ones answer alike.

What lives here: the photographs, the checks and their limits. What does not: rewriting networks
(``serving.acceleration``), and whether the grades are right, which the test split has measured.

Letters: N photographs, K grades of a task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from torch import Tensor, nn

from retina_ray.bundle import Bundle
from retina_ray.bundle_manifest import BundleManifest
from retina_ray.data.batch import normalise
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.data.synthetic import SYNTHETIC_TASKS, draw
from retina_ray.errors import BundleError
from retina_ray.methods.base import Method
from retina_ray.serving.acceleration import Precision
from retina_ray.serving.predictor import preparation_of

PHOTOGRAPHS: Final = 4
"""As few as tell a dead network from others: a large one needs a second of one CPU for them."""

TOLERANCE: Final[Mapping[Precision, float]] = {"float32": 1e-3, "bfloat16": 2e-2}
"""By which a probability of a rewritten network may differ, by the precision that it multiplies in."""

MIN_SPREAD: Final = 1e-4
"""By which the logarithm of some probability of a task must differ between photographs; rounding makes 1e-6 of nothing.

The logarithm, since a network that is all too sure gives 0 and 1 to all photographs, and still tells them apart.
"""

_MAX_SUM_ERROR = 1e-3
_DRAWN_SIDE, _MARGIN = 256, 24  # pixels
_ANOTHER_VERSION = "serve another version, or train again"

Networks: TypeAlias = Sequence[tuple[Method, nn.Module]]
"""As `Bundle.network_modules` returns them."""

Answers: TypeAlias = dict[str, npt.NDArray[np.float32]]
"""Probabilities (N, K) by task, before calibration."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check that was passed has found.

    Attributes:
        photographs: N, those graded.
        largest_difference: of a probability, between the networks as trained and as rewritten, 0..1.
        task: where it is.
        tolerance: what it may be.
        least_spread: over the tasks, of what `MIN_SPREAD` is the limit of.
    """

    photographs: int
    largest_difference: float
    task: str
    tolerance: float
    least_spread: float


def drawn_photographs(bundle: Bundle) -> Tensor:
    """Draw photographs and prepare their files as those of patients are.

    They show the diseases that the model grades, as far as these can be drawn, else diabetic retinopathy: from healthy
    to the worst grade, each another patient, photographed by another camera.

    Args:
        bundle: the model.

    Returns:
        (N, 3, H, W) float32, normalised, H = W the model's image size; on the CPU.

    Raises:
        BundleError: the model wants another preprocessing than this release's.
    """
    preparation = preparation_of(bundle)
    tasks = [task.name for task in bundle.manifest.tasks if task.name in SYNTHETIC_TASKS] or ["dr"]
    of_each = -(-PHOTOGRAPHS // len(tasks))
    pixels = []
    for index in range(PHOTOGRAPHS):
        round_, which = divmod(index, len(tasks))
        data = _file(tasks[which], severity=round_ / max(of_each - 1, 1), patient=index)
        pixels.append(preparation.prepare(data, name=f"drawn photograph {index}").pixels)
    return normalise(torch.from_numpy(np.stack(pixels)))


def check_answers(networks: Networks, manifest: BundleManifest, images: Tensor) -> Answers:
    """Return a model's answers, if they are answers: probabilities for every task, not the same for all photographs.

    Args:
        networks: of the model, in evaluation mode.
        manifest: of the model.
        images: (N, 3, H, W), normalised, of different photographs; on the networks' device.

    Raises:
        BundleError: a task has no answer, one of another number of grades, or no probabilities; or all photographs have
            the same.
    """
    answers = _answers(networks, images)
    for task in manifest.tasks:
        wanted = (len(images), task.num_grades)
        found = answers[task.name].shape if task.name in answers else None
        if found != wanted:
            what = f"the networks of {manifest.name} do not answer {task.name} for {wanted[0]} photographs"
            raise BundleError(f"{what} with {wanted[1]} grades", found, _ANOTHER_VERSION)
        _check_probabilities(answers[task.name], task.name, manifest.name)
        spread = _spread(answers[task.name])
        if spread < MIN_SPREAD:
            what = f"the networks of {manifest.name} give {len(images)} photographs the same {task.name} grades"
            value = f"log-probabilities differ by {spread:.1e}, the least allowed is {MIN_SPREAD:.0e}"
            raise BundleError(what, value, f"its weights are damaged or were never trained: {_ANOTHER_VERSION}")
    return answers


def self_check(
    bundle: Bundle, reference: Networks, served: Networks, *, precision: Precision, device: torch.device
) -> CheckReport:
    """Check a model's networks as trained (`check_answers`), and that the rewritten ones answer alike.

    The rewritten ones grade all photographs together and one of them alone, since a batch may run other code, and an
    answer must not depend on its neighbours.

    Args:
        bundle: the model.
        reference: its networks as trained, in evaluation mode.
        served: those that are to be served, in their order.
        precision: that the served ones multiply in.
        device: where all of them are.

    Raises:
        BundleError: the model as trained does not answer as it must, or the rewritten networks answer otherwise.
    """
    manifest, images = bundle.manifest, drawn_photographs(bundle).to(device)
    trained = check_answers(reference, manifest, images)
    tolerance = TOLERANCE[precision]
    differences: dict[str, float] = {}
    for count in (len(images), 1):
        rewritten = _answers(served, images[:count])
        for task, answers in trained.items():
            difference = np.abs(rewritten[task] - answers[:count])
            largest = np.where(np.isnan(difference), np.inf, difference).max()  # NaN is beyond any limit
            differences[task] = max(differences.get(task, 0.0), float(largest))
    task = max(differences, key=differences.__getitem__)
    if differences[task] > tolerance:
        what = f"the rewritten networks of {manifest.name} answer {task} otherwise than the trained ones"
        value = f"a probability differs by {differences[task]:.3g}, the most allowed in {precision} is {tolerance:g}"
        fix = "serve it in float32" if precision == "bfloat16" else _ANOTHER_VERSION
        raise BundleError(what, value, fix)
    least_spread = min(_spread(answers) for answers in trained.values())
    return CheckReport(len(images), differences[task], task, tolerance, least_spread)


def _file(task: str, *, severity: float, patient: int) -> bytes:
    """Return the JPEG file of a drawn photograph of a severity in [0, 1], wider than high as a camera's."""
    grade = round(severity * (KNOWN_TASKS[task].num_grades - 1))
    drawn = draw(size=_DRAWN_SIDE, task=task, grade=grade, seed=0, index=2 * patient).image
    frame = np.pad(drawn, ((0, 0), (_MARGIN, _MARGIN), (0, 0)))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95))


def _answers(networks: Networks, images: Tensor) -> Answers:
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for method, network in networks:
            found.update(method.probabilities(network, method.inputs(images)))
    return {task: values.float().cpu().numpy() for task, values in found.items()}


def _check_probabilities(answers: npt.NDArray[np.float32], task: str, name: str) -> None:
    finite = np.isfinite(answers)
    if not finite.all():
        what = f"the networks of {name} answer {task} with numbers that are not finite"
        value = f"{answers[~finite][0]} in {(~finite).any(axis=1).sum()} of {len(answers)} photographs"
        raise BundleError(what, value, f"its weights are damaged: {_ANOTHER_VERSION}")
    error = float(np.abs(answers.sum(axis=1) - 1).max())
    if error > _MAX_SUM_ERROR or answers.min() < 0:
        what = f"the networks of {name} answer {task} with numbers that are no probabilities"
        raise BundleError(what, f"their sum is off by {error:.3g}, the least is {answers.min():.3g}", _ANOTHER_VERSION)


def _spread(answers: npt.NDArray[np.float32]) -> float:
    """Return by how much the logarithm of a probability differs at most between photographs (N, K)."""
    return float(np.ptp(np.log(np.maximum(answers, np.finfo(np.float32).tiny)), axis=0).max())
