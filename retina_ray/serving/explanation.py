"""What a bundle's networks see in photographs: heat maps of their grades, lesions, and the super-resolved image.

What lives here: all of it from one forward pass, the probabilities included. What does not: Grad-CAM's and GMSV's
formulas (``serving/head_gradient.py``, ``explain/gmsv.py``), and pictures of the results (``serving/drawing.py``).

Shapes: ``B`` photographs, ``K`` grades, ``H W`` what a network takes, ``S`` side of the fundus square at the networks'
image size, which equals H and W where the photographs are not given in low resolution.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retina_ray.bundle_manifest import BundleManifest
from retina_ray.data.batch import denormalise, from_unit_range, to_unit_range
from retina_ray.errors import ConfigError
from retina_ray.explain.evidence import GmsvEvidence
from retina_ray.losses.sall import temperature_softmax
from retina_ray.methods.base import Method
from retina_ray.methods.deepmt.graph import StageNetwork
from retina_ray.methods.deepmt.method import DeepMT
from retina_ray.methods.sall import SallGrader
from retina_ray.models.backbones import cam_layer
from retina_ray.models.deepmt.network import DeepMTOutput
from retina_ray.models.deepmt.segmentation import lesion_probabilities
from retina_ray.models.sall import MultiTaskGrader
from retina_ray.serving.head_gradient import CutNetwork, grade_cams
from retina_ray.serving.schema import Explanation

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Examination:
    """What the networks make of photographs; what was not asked for is empty or None.

    Attributes:
        probabilities: (B, K) by task, before calibration, as `Predictor.probabilities` returns them.
        maps: (B, S, S) in [0, 1] by task: Grad-CAM of the most probable grade, GMSV of retinopathy of any grade. A map
            without positive evidence is all zero.
        lesions: (B, 4, S, S) in [0, 1], the probability of each of `data.schema.LESIONS`.
        enhanced: (B, S, S, 3) RGB, super-resolved.
    """

    probabilities: dict[str, Array]
    maps: dict[str, Array]
    lesions: Array | None
    enhanced: npt.NDArray[np.uint8] | None


class Explainer:
    """Grades photographs and shows what the grades go by; may be used by several threads.

    Images are what `Predictor` shows the networks: (B, 3, H, W), normalised. Surrounding ``no_grad`` or
    ``inference_mode`` does not matter, and the networks stay as they are, without hooks, gradients or changed flags.

    Args:
        networks: as `Bundle.network_modules` returns them, not compiled: cutting one needs its modules.
        manifest: of their bundle.
        device: where they are.
        low_resolution: photographs are what a super-resolving network takes, and are not degraded first.
    """

    def __init__(
        self,
        networks: Sequence[tuple[Method, nn.Module]],
        manifest: BundleManifest,
        device: torch.device | str = "cpu",
        *,
        low_resolution: bool = False,
    ) -> None:
        self._device = torch.device(device)
        side = manifest.preprocessing.image_size
        self._parts = [_part(method, network, side=side, degrades=not low_resolution) for method, network in networks]

    @property
    def kinds(self) -> list[Explanation]:
        """Maps that all the networks can make."""
        return [kind for kind in _KINDS if all(kind in part.kinds for part in self._parts)]

    @property
    def lesions(self) -> bool:
        """Whether lesions are segmented."""
        return any(part.segments for part in self._parts)

    @property
    def enhances(self) -> bool:
        """Whether images are super-resolved."""
        return any(part.restores for part in self._parts)

    @torch.inference_mode(False)  # what it computes may enter the graph of a map
    def examine(
        self, images: Tensor, *, kind: Explanation | None = None, lesions: bool = False, enhance: bool = False
    ) -> Examination:
        """Return all that is asked for of one forward pass.

        Args:
            images: (B, 3, H, W), normalised.
            kind: of the maps; None for none.
            lesions: whether to return them.
            enhance: whether to return the super-resolved images.

        Raises:
            ValueError: the networks cannot do what is asked for.
        """
        if kind is not None and kind not in self.kinds:
            raise ValueError(f"the networks make no maps by {kind}; ask for one of {self.kinds}")
        if lesions and not self.lesions:
            raise ValueError("the networks segment no lesions; ask a model that does")
        if enhance and not self.enhances:
            raise ValueError("the networks do not super-resolve; ask a model that does")
        with torch.no_grad():
            seen = [part.see(images.to(self._device), kind) for part in self._parts]
        return Examination(
            probabilities={task: _array(found) for each in seen for task, found in each.probabilities.items()},
            maps={task: _array(found) for each in seen for task, found in each.maps.items()},
            lesions=_array(_present(each.lesions for each in seen)) if lesions else None,
            enhanced=denormalise(from_unit_range(_present(each.restored for each in seen))) if enhance else None,
        )


_KINDS: tuple[Explanation, ...] = ("gradcam", "gmsv")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one network sees: probabilities (B, K) and maps (B, S, S) by task, and what only DeepMT-DR's has."""

    probabilities: dict[str, Tensor]
    maps: dict[str, Tensor] = field(default_factory=dict)
    lesions: Tensor | None = None
    restored: Tensor | None = None


class _Part(Protocol):
    """A network and how it is explained."""

    kinds: tuple[Explanation, ...]
    segments: bool
    restores: bool

    def see(self, images: Tensor, kind: Explanation | None) -> _Seen: ...


def _part(method: Method, network: nn.Module, *, side: int, degrades: bool) -> _Part:
    if isinstance(method, SallGrader):
        assert isinstance(network, MultiTaskGrader)
        return _Sall(method, network, side)
    assert isinstance(method, DeepMT)
    assert isinstance(network, StageNetwork)
    return _DeepMT(method, network, side, degrades)


class _Sall:
    """A grader of one or several tasks."""

    segments = False
    restores = False

    def __init__(self, method: SallGrader, network: MultiTaskGrader, side: int) -> None:
        self._method, self._network, self._size = method, network, (side, side)
        self.kinds: tuple[Explanation, ...] = ("gradcam",)
        try:
            self._cut = CutNetwork(network, cam_layer(network.backbone))
        except ConfigError:  # a network of tokens
            self.kinds = ()

    def see(self, images: Tensor, kind: Explanation | None) -> _Seen:
        if kind is None:
            return _Seen(self._method.probabilities(self._network, images))
        logits, features = self._cut(images)
        temperature = self._method.temperature
        probabilities = {task: temperature_softmax(found.detach(), temperature) for task, found in logits.items()}
        return _Seen(probabilities, grade_cams(logits, features, self._size))


class _DeepMT:
    """The chain of super-resolution, segmentation and grading."""

    def __init__(self, method: DeepMT, network: StageNetwork, side: int, degrades: bool) -> None:
        self._method, self._network, self._size, self._degrades = method, network, (side, side), degrades
        nets = network.nets
        assert nets.grader is not None
        self._cut = CutNetwork(nets, nets.grader.stages[-1])
        explains_by_gmsv = isinstance(network.evidence, GmsvEvidence)
        self.kinds: tuple[Explanation, ...] = ("gradcam", "gmsv") if explains_by_gmsv else ("gradcam",)
        self.segments = nets.segmentation is not None
        self.restores = nets.super_resolution is not None

    def see(self, images: Tensor, kind: Explanation | None) -> _Seen:
        task = self._method.task
        low = to_unit_range(self._method.inputs(images) if self._degrades else images)
        output, maps = self._run(low, kind)
        assert output.grader is not None
        probabilities = output.grader.logits.detach().float().softmax(dim=1)
        segmented = output.segmentation_logits
        lesions = None if segmented is None else lesion_probabilities(segmented)
        return _Seen({task: probabilities}, maps, lesions, output.restored)

    def _run(self, low: Tensor, kind: Explanation | None) -> tuple[DeepMTOutput, dict[str, Tensor]]:
        task, nets = self._method.task, self._network.nets
        if kind is None:
            return nets(low), {}
        if kind == "gradcam":
            output, features = self._cut(low)
            return output, grade_cams({task: output.grader.logits}, features, self._size)
        restored = nets.restore(low)
        segmented = None if nets.segmentation is None else nets.segment(restored)
        lesions = None if segmented is None else lesion_probabilities(segmented)
        evidence = self._network.evidence
        assert evidence is not None
        graded, heat = evidence(nets.grade, restored, lesions, create_graph=False)
        return DeepMTOutput(restored, segmented, graded), {task: heat}


def _present(values: Iterable[Tensor | None]) -> Tensor:
    return next(value for value in values if value is not None)


def _array(values: Tensor) -> Array:
    found: Array = values.float().cpu().numpy()
    return found
