"""One served model in one process: load a bundle, check it, swap it for another, grade and explain with it.

A swap fails no request: the new model is loaded and checked beside the old one, and requests that were prepared for
the old one are still answered by it afterwards. What is not here: how requests get here (``serve_apps``), preparing
photographs and drawing maps, which an endpoint does on other CPUs (``grading_service``).
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from retina_ray.bundle import CARD, Bundle
from retina_ray.errors import ConfigError, RetinaRayError
from retina_ray.serving.acceleration import Precision, accelerate
from retina_ray.serving.exchange import Answer, Failed, HostState, Job, Swap
from retina_ray.serving.explanation import Examination, Explainer
from retina_ray.serving.predictor import Predictor, preparation_of
from retina_ray.serving.preparation import Preparation
from retina_ray.serving.schema import ModelDescription, ModelVersion, TaskDescription
from retina_ray.serving.self_check import self_check
from retina_ray.serving.service import GradeOptions

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostSettings:
    """How a host computes.

    Attributes:
        served_as: what requests call the model.
        device: ``cpu``, ``cuda`` or ``auto``.
        precision: of the networks.
        warm_batches: batch sizes that are run before the model counts as ready.
    """

    served_as: str
    device: str = "auto"
    precision: Precision = "float32"
    warm_batches: tuple[int, ...] = (1,)


class LoadedModel:
    """A bundle that passed its self-check, ready to answer.

    Args:
        bundle: the model.
        settings: how it computes.
        version: number in the registry, if it came from there.

    Raises:
        BundleError: it is damaged, or its networks do not compute what they should.
    """

    def __init__(self, bundle: Bundle, settings: HostSettings, *, version: int | None = None) -> None:
        self._bundle = bundle
        self._settings = settings
        self._version = version
        self.device = _device(settings.device)
        reference = bundle.network_modules(self.device)
        side = bundle.manifest.preprocessing.image_size
        example = torch.zeros(1, 3, side, side, device=self.device)
        networks = [
            (method, accelerate(method, network, precision=settings.precision, example=method.inputs(example)))
            for method, network in reference
        ]
        self.check = self_check(bundle, reference, networks, precision=settings.precision, device=self.device)
        self.predictor = Predictor(bundle, self.device, networks=networks, version=version)
        self.explainer = Explainer(networks, bundle.manifest, self.device)
        self._networks = networks
        for size in settings.warm_batches:
            self.predictor.probabilities(example.expand(size, -1, -1, -1))

    @property
    def hash(self) -> str:
        """The bundle's hash."""
        return self._bundle.hash

    @cached_property
    def state(self) -> HostState:
        """What senders have to know."""
        manifest = self._bundle.manifest
        description = ModelDescription(
            served_as=self._settings.served_as,
            model=ModelVersion(name=manifest.name, version=self._version, hash=self.hash),
            method=manifest.method,
            tasks={
                task.name: TaskDescription(
                    grades=list(task.grades),
                    referable_from=manifest.calibration[task.name].referable_from,
                    coverage=manifest.calibration[task.name].coverage,
                    metrics=dict(manifest.metrics[task.name].metrics),
                )
                for task in manifest.tasks
            },
            image_size=manifest.preprocessing.image_size,
            explanations=self.explainer.kinds,
            lesions=self.explainer.lesions,
            enhances=self.explainer.enhances,
            created=manifest.created,
            card=self._bundle.store.read_bytes(CARD).decode(),
        )
        return HostState(
            description=description,
            preparation=preparation_of(self._bundle),
            low_resolution=_low_resolution(self._bundle),
            reference=manifest.reference,
            quality=manifest.quality,
        )

    def answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer jobs that want the same, in one batch."""
        options = jobs[0].options
        predictor, explainer = self._of_low_resolution if options.low_resolution else (self.predictor, self.explainer)
        prepared = [job.prepared for job in jobs]
        start = time.perf_counter()
        images = predictor.inputs([each.pixels for each in prepared])
        if options.explain is None and not options.lesions and not options.enhance:
            found = Examination(predictor.probabilities(images), maps={}, lesions=None, enhanced=None)
        else:
            found = explainer.examine(images, kind=options.explain, lesions=options.lesions, enhance=options.enhance)
        responses = predictor.answers(prepared, found.probabilities, network_ms=1e3 * (time.perf_counter() - start))
        return [
            Answer(
                response=response,
                maps={task: maps[i] for task, maps in found.maps.items()},
                lesions=None if found.lesions is None else found.lesions[i],
                enhanced=None if found.enhanced is None else found.enhanced[i],
                batch_size=len(jobs),
            )
            for i, response in enumerate(responses)
        ]

    @cached_property
    def _of_low_resolution(self) -> tuple[Predictor, Explainer]:
        """What answers photographs that are not degraded first; senders know from the state whether there is any."""
        predictor = Predictor(
            self._bundle, self.device, low_resolution=True, networks=self._networks, version=self._version
        )
        return predictor, Explainer(self._networks, self._bundle.manifest, self.device, low_resolution=True)


class ModelHost:
    """Answers with one model at a time, and with the one before it for requests that were prepared for that.

    Args:
        settings: how it computes.
    """

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._current: LoadedModel | None = None
        self._previous: LoadedModel | None = None
        self._swap: Swap | None = None
        self._changing = threading.Lock()

    @property
    def state(self) -> HostState:
        """What senders have to know, as of now."""
        current, swap = self._current, self._swap
        return replace(HostState() if current is None else current.state, swap=swap)

    def load(self, bundle: Bundle, *, address: str, version: int | None = None) -> bool:
        """Put a bundle in the place of the present one, unless it fails its self-check; that already there stays.

        Args:
            bundle: the new model.
            address: what messages call it.
            version: its number in the registry.

        Returns:
            Whether it answers now.
        """
        with self._changing:
            if self._current is not None and (self._current.hash == bundle.hash):
                self._swap = None
                return True
            self._swap = Swap(address, "loading")
            self._previous = None  # whoever prepared for it has long had an answer, and three would take more memory
            try:
                loaded = LoadedModel(bundle, self._settings, version=version)
                _ = loaded.state  # read the card now, not at the first request
            except Exception as error:  # of torch too, such as where there is no memory for it
                self.refuse(address, reason(error))
                return False
            self._previous, self._current, self._swap = self._current, loaded, None
            return True

    def refuse(self, address: str, detail: str) -> None:
        """Note that a model cannot take the present one's place, and why; that stays."""
        self._swap = Swap(address, "refused", detail)

    def clear(self) -> None:
        """Answer with no model from now on."""
        with self._changing:
            self._current = self._previous = self._swap = None

    def answer(self, jobs: Sequence[Job]) -> list[Answer | HostState | Failed]:
        """Answer jobs, batching those that want the same of the same model.

        Returns:
            An answer for each; where neither the present model nor the one before is the one that a job was prepared
            for, the state by which to prepare it again; where the networks raised, `Failed`.
        """
        found: list[Answer | HostState | Failed] = [self.state] * len(jobs)
        groups: dict[tuple[str, GradeOptions], list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault((job.model, job.options), []).append(index)
        for indices in groups.values():
            model = self._model(jobs[indices[0]].model)
            if model is None:
                continue
            for index, answer in zip(indices, _answers(model, [jobs[i] for i in indices]), strict=True):
                found[index] = answer
        return found

    def _model(self, wanted: str) -> LoadedModel | None:
        return next((model for model in (self._current, self._previous) if model and model.hash == wanted), None)


def reason(error: Exception) -> str:
    """Return why a bundle is not loaded, in a line."""
    if isinstance(error, RetinaRayError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _answers(model: LoadedModel, jobs: Sequence[Job]) -> Sequence[Answer | Failed]:
    """Return the answers to jobs that want the same; what fails here must not fail those that want something else."""
    try:
        return model.answer(jobs)
    except Exception as error:
        _logger.exception("the networks of %s failed on %d photographs", model.hash, len(jobs))
        return [Failed(type(error).__name__)] * len(jobs)


def _low_resolution(bundle: Bundle) -> Preparation | None:
    try:
        return preparation_of(bundle, low_resolution=True)
    except ConfigError:
        return None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
