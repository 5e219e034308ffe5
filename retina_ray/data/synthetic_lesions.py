"""What disease adds to a drawn retina, and how much of it each grade has.

The grades follow the International Clinical DR scale and the AMD levels of SALL (section I, Table I). Diseases share
their signs on purpose, as SALL's Fig. 1 argues: the haemorrhage of a diabetic eye and of a choroidal
neovascularisation are painted by the same function, and so are the exudates of both; drusen differ from exudates only
in softness and place. Counts of neighbouring grades overlap a little, as graders do. Lengths as in
``synthetic_anatomy``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from retina_ray.data.schema import LESIONS
from retina_ray.data.synthetic_anatomy import (
    BLOOD,
    Eye,
    Floats,
    Plane,
    Rng,
    absorb,
    cover,
    draw_tubes,
    enlarge,
    fill,
    to_pixels,
)

_EXUDATE = np.array([1.0, 0.84, 0.42], np.float32)
_DRUSE = np.array([0.98, 0.78, 0.38], np.float32)
_COTTON = np.array([0.95, 0.82, 0.55], np.float32)
_MEMBRANE = np.array([0.46, 0.37, 0.21], np.float32)
_PIGMENT = np.array([0.25, 0.12, 0.05], np.float32)
_FIELD = 0.86  # lesions stay this close to the centre of the picture


@dataclass
class Lesions:
    """Opacity planes of everything abnormal, 0..255 uint8 (n, n) each, made on first use.

    The names of `LESIONS` are also the planes of the lesion mask; ``druse``, ``membrane``, ``new_vessel``,
    ``pigment`` and ``reflex`` belong to no plane of it.
    """

    n: int
    planes: dict[str, Plane] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Plane:
        """Return the plane of that name, empty if nothing was drawn on it."""
        return self.planes.setdefault(name, np.zeros((self.n, self.n), np.uint8))

    def blobs(self, rng: Rng, name: str, centres: Floats, radii: Floats, **shape: float | Floats) -> None:
        """Draw irregular spots at the centres, (N, 2), of the radii, (N,); `shape` goes to `_outlines`."""
        for polygon in to_pixels(_outlines(rng, centres, radii, **shape), self.n):
            fill(self[name], polygon, rng.uniform(0.75, 1.0))

    def mask(self, size: int) -> npt.NDArray[np.bool_]:
        """Return the mask planes at the photograph's size, (4, S, S), in the order of `LESIONS`."""
        out = np.zeros((len(LESIONS), size, size), np.bool_)
        for plane, name in enumerate(LESIONS):
            if name in self.planes:
                out[plane] = cv2.resize(self.planes[name], (size, size), interpolation=cv2.INTER_AREA) > 80
        return out


def _outlines(
    rng: Rng,
    centres: Floats,
    radii: Floats,
    *,
    stretch: float | Floats = 1.0,
    angle: float | Floats = 0.0,
    roughness: float | Floats = 0.25,
) -> Floats:
    """Return closed outlines, (N, 18, 2): ellipses of the given axis ratio whose radius wavers."""
    count = len(centres)
    t = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    waver = np.zeros((count, 18))
    for order in (2, 3, 5):
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        waver += rng.normal(0, 1 / order, (count, 1)) * np.sin(order * t + phase)
    radius = radii[:, None] * np.maximum(0.4, 1 + roughness * waver)
    root = np.sqrt(np.broadcast_to(stretch, (count,)))[:, None]
    turn = np.broadcast_to(angle, (count,))[:, None]
    x, y = radius * np.cos(t) * root, radius * np.sin(t) / root
    outline = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=-1)
    return np.asarray(centres[:, None] + outline, np.float32)


def _scatter(rng: Rng, eye: Eye, count: int, *, around: Floats, spread: float, clear: float = 1.4) -> Floats:
    """Return up to `count` points about a centre, inside the field and off the optic disc, (N, 2)."""
    points = around + rng.normal(0, spread, (3 * count + 8, 2))
    inside = np.hypot(points[:, 0], points[:, 1]) < _FIELD
    off_disc = np.hypot(*(points - eye.disc).T) > clear * eye.disc_radius
    return np.asarray(points[inside & off_disc][:count], np.float32)


def microaneurysms(rng: Rng, eye: Eye, lesions: Lesions, count: int) -> None:
    """Tiny dark red dots about the posterior pole."""
    centres = _scatter(rng, eye, count, around=eye.fovea * 0.7, spread=0.36)
    lesions.blobs(rng, "MA", centres, rng.uniform(0.016, 0.024, len(centres)), roughness=0.1)


def haemorrhages(rng: Rng, eye: Eye, lesions: Lesions, count: int) -> None:
    """Blots, and flames along the nerve fibres that run from the disc."""
    centres = _scatter(rng, eye, count, around=eye.fovea * 0.4, spread=0.42)
    radii = rng.uniform(0.028, 0.062, len(centres))
    away = centres - eye.disc
    along = np.arctan2(away[:, 1], away[:, 0]) + rng.normal(0, 0.25, len(centres))
    flame = rng.random(len(centres)) < 0.35
    stretch = np.where(flame, rng.uniform(2.2, 4.0, len(centres)), rng.uniform(1.0, 1.5, len(centres)))
    lesions.blobs(
        rng, "HM", centres, radii, stretch=stretch, angle=along, roughness=np.where(flame, 0.25, 0.35)[:, None]
    )


def pool_of_blood(rng: Rng, lesions: Lesions, centre: Floats, radius: float) -> None:
    """One large haemorrhage before or under the retina, often with a level top."""
    outline = _outlines(
        rng, centre[None], np.array([radius], np.float32), stretch=rng.uniform(1.0, 1.9), roughness=0.35
    )
    if rng.random() < 0.5:
        outline[..., 1] = np.maximum(outline[..., 1], centre[1] - 0.35 * radius)
    fill(lesions["HM"], to_pixels(outline, lesions.n)[0], 1.0)


def hard_exudates(rng: Rng, eye: Eye, lesions: Lesions, clusters: int, around: Floats, spread: float) -> None:
    """Clusters or rings of small, sharp, bright yellow spots."""
    for centre in _scatter(rng, eye, clusters, around=around, spread=spread):
        count = int(rng.integers(6, 22))
        if rng.random() < 0.3:
            turn = rng.uniform(0, 2 * np.pi, count)
            ring = rng.uniform(0.07, 0.15) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
            points = (centre + ring + rng.normal(0, 0.012, (count, 2))).astype(np.float32)
        else:
            points = _scatter(rng, eye, count, around=centre, spread=rng.uniform(0.03, 0.09))
        radii = np.minimum(rng.lognormal(-4.3, 0.4, len(points)), 0.034)
        lesions.blobs(rng, "HE", points, radii, stretch=rng.uniform(1, 1.6), angle=rng.uniform(0, 3), roughness=0.6)


def soft_exudates(rng: Rng, eye: Eye, lesions: Lesions, count: int) -> None:
    """Cotton wool: pale, fuzzy patches near the arcades."""
    centres = _scatter(rng, eye, count, around=0.5 * (eye.disc + eye.fovea), spread=0.4, clear=1.8)
    radii = rng.uniform(0.045, 0.08, len(centres))
    lesions.blobs(rng, "SE", centres, radii, stretch=rng.uniform(1, 1.6), angle=rng.uniform(0, 3), roughness=0.3)


def drusen(rng: Rng, eye: Eye, lesions: Lesions, count: int, radius: tuple[float, float]) -> None:
    """Round, soft, yellow deposits in the macula."""
    centres = _scatter(rng, eye, count, around=eye.fovea, spread=eye.reach * 0.3)
    lesions.blobs(rng, "druse", centres, rng.uniform(*radius, len(centres)), roughness=0.15)


def new_vessels(rng: Rng, eye: Eye, lesions: Lesions, tangles: int) -> None:
    """Tangles of fine new vessels on the disc or along the arcades, some with a pale scar."""
    for tangle in range(tangles):
        if tangle == 0 and rng.random() < 0.6:
            centre = eye.disc + rng.normal(0, 0.5 * eye.disc_radius, 2).astype(np.float32)
        else:
            trunk = eye.veins.paths[0][rng.integers(4)]
            centre = trunk[rng.integers(7, 16)]
        count, points = int(rng.integers(12, 22)), 14
        step = rng.uniform(0.010, 0.02, (count, 1))
        angle = rng.uniform(0, 2 * np.pi, (count, 1)) + np.cumsum(rng.normal(0, 0.55, (count, points)), axis=1)
        path = centre + np.stack([(step * np.cos(angle)).cumsum(1), (step * np.sin(angle)).cumsum(1)], axis=-1)
        draw_tubes(lesions["new_vessel"], path.astype(np.float32), np.full((count, points), 0.013, np.float32))
        if rng.random() < 0.3:
            radius = np.array([rng.uniform(0.05, 0.11)], np.float32)
            fill(
                lesions["scar"],
                to_pixels(_outlines(rng, centre[None], radius, stretch=2.5, angle=angle[0, 0]), lesions.n)[0],
                0.5,
            )


def draw_dr(rng: Rng, eye: Eye, lesions: Lesions, grade: int) -> None:
    """Diabetic retinopathy 0..4: none; MA only; some HM and HE; HM in every quadrant and SE; proliferative."""

    def some(*ranges: tuple[int, int]) -> int:
        low, high = ranges[grade]
        return int(rng.integers(low, high + 1))

    microaneurysms(rng, eye, lesions, some((0, 0), (3, 10), (4, 14), (8, 20), (2, 14)))
    haemorrhages(rng, eye, lesions, some((0, 0), (0, 0), (2, 7), (13, 30), (1, 14)))
    hard_exudates(rng, eye, lesions, some((0, 0), (0, 0), (0, 3), (0, 4), (0, 3)), eye.fovea, 0.3)
    soft_exudates(rng, eye, lesions, some((0, 0), (0, 0), (0, 1), (1, 5), (0, 3)))
    if grade == 4:
        new_vessels(rng, eye, lesions, int(rng.integers(1, 4)))
        if rng.random() < 0.6:
            around = 0.5 * (eye.disc + eye.fovea)
            for centre in _scatter(rng, eye, 1, around=around, spread=0.4):
                pool_of_blood(rng, lesions, centre, rng.uniform(0.12, 0.24))


def draw_amd(rng: Rng, eye: Eye, lesions: Lesions, grade: int) -> None:
    """Age-related macular degeneration 0..3: none; small drusen; big drusen; choroidal neovascularisation."""
    if grade == 0 and rng.random() < 0.4:
        drusen(rng, eye, lesions, int(rng.integers(1, 4)), (0.012, 0.018))
    if grade == 1:
        drusen(rng, eye, lesions, int(rng.integers(6, 26)), (0.013, 0.026))
    if grade == 2 or (grade == 3 and rng.random() < 0.5):
        drusen(rng, eye, lesions, int(rng.integers(3, 16)), (0.03, 0.058))
        drusen(rng, eye, lesions, int(rng.integers(0, 14)), (0.013, 0.026))
        if rng.random() < 0.4:
            spots = _scatter(rng, eye, int(rng.integers(1, 4)), around=eye.fovea, spread=0.12)
            lesions.blobs(rng, "pigment", spots, rng.uniform(0.015, 0.035, len(spots)))
    if grade == 3:
        centre = eye.fovea + rng.normal(0, 0.08, 2).astype(np.float32)
        radius = rng.uniform(0.08, 0.2)
        lesions.blobs(rng, "membrane", centre[None], np.array([radius]), stretch=rng.uniform(1, 1.5), roughness=0.35)
        for _ in range(int(rng.integers(1, 4))):
            edge = centre + rng.normal(0, 0.75 * radius, 2).astype(np.float32)
            pool_of_blood(rng, lesions, edge, rng.uniform(0.05, 0.15))
        hard_exudates(rng, eye, lesions, int(rng.integers(0, 3)), centre, 1.3 * radius)


def draw_distractors(rng: Rng, eye: Eye, lesions: Lesions) -> None:
    """What any eye may have and a grader must not mind: pigment spots, reflexes, one stray bright or dark dot."""
    spots = _scatter(rng, eye, int(rng.poisson(0.7)), around=np.zeros(2, np.float32), spread=0.5)
    lesions.blobs(rng, "pigment", spots, rng.uniform(0.015, 0.06, len(spots)))
    if rng.random() < 0.35:  # the wet sheen of a young retina beside its arcades
        trunk = eye.veins.paths[0][rng.integers(4)]
        gleams = trunk[rng.integers(5, 20, int(rng.integers(2, 6)))] + rng.normal(0, 0.03, (1, 2))
        lesions.blobs(rng, "reflex", gleams.astype(np.float32), rng.uniform(0.03, 0.07, len(gleams)), stretch=2.0)
    dust = _scatter(rng, eye, int(rng.poisson(0.8)), around=np.zeros(2, np.float32), spread=0.5)
    lesions.blobs(rng, "dust", dust, rng.uniform(0.01, 0.018, len(dust)))


DRAWERS: dict[str, Callable[[Rng, Eye, Lesions, int], None]] = {"dr": draw_dr, "amd": draw_amd}


def _softened(lesions: Lesions, name: str, softness: float) -> Floats:
    """Return a plane blurred by a share of the canvas, (n, n), 0..1."""
    blurred = cv2.GaussianBlur(lesions[name], (0, 0), max(0.3, softness * lesions.n))
    return blurred.astype(np.float32) * np.float32(1 / 255)


@contextmanager
def _level_light(image: Floats) -> Iterator[None]:
    """Keep the regional brightness of an image, (3, n, n), about what it was before the block painted on it.

    Without this the mean colour of the macula alone would tell drusen or a bleeding from a healthy eye.
    """
    n, cells = image.shape[-1], 6

    def regions() -> Floats:
        return np.stack([cv2.resize(plane, (cells, cells), interpolation=cv2.INTER_AREA) for plane in image])

    before = regions()
    yield
    for plane, gain in zip(image, np.clip(before / regions(), 0.75, 1.33), strict=True):
        plane *= enlarge(gain, n)


def paint_deep(rng: Rng, eye: Eye, lesions: Lesions, image: Floats) -> None:
    """Paint on (3, n, n), in place, what lies under the vessels: drusen, exudates, membranes, pigment, sheen."""
    strength = rng.uniform(0.6, 1.0)
    light = 0.55 + 0.7 * float(eye.pigment[0])
    deep = (
        ("pigment", 0.006, _PIGMENT, 0.45),
        ("membrane", 0.02, _MEMBRANE, 0.75),
        ("druse", 0.009, _DRUSE * light, 0.7 * strength),
        ("HE", 0.002, _EXUDATE * light, 0.9 * strength),
        ("dust", 0.003, _EXUDATE * light, 0.5),
        ("reflex", 0.015, _COTTON * light, 0.22),
    )
    with _level_light(image):
        for name, softness, colour, opacity in deep:
            if name in lesions.planes:
                cover(image, np.float32(opacity) * _softened(lesions, name, softness), colour)


def paint_superficial(rng: Rng, eye: Eye, lesions: Lesions, image: Floats) -> None:
    """Paint on (3, n, n), in place, what lies in or before the retina: cotton wool, blood, new vessels."""
    light = 0.55 + 0.7 * float(eye.pigment[0])
    thickness = rng.uniform(0.65, 0.9)
    with _level_light(image):
        for name in ("SE", "scar"):
            if name in lesions.planes:
                cover(image, np.float32(0.72) * _softened(lesions, name, 0.014), _COTTON * light)
        for name, softness, share in (("MA", 0.002, 1.0), ("HM", 0.005, 1.0), ("new_vessel", 0.002, 0.75)):
            if name in lesions.planes:
                absorb(image, _softened(lesions, name, softness), BLOOD * np.float32(thickness * share))
