"""The healthy part of a drawn fundus: pigmented background, macula, optic disc and the tree of vessels.

Lengths are in units of half the canvas, x to the right and y down, the origin in its middle; `to_pixels` converts.
Images here are reflectances: float32 (3, n, n) RGB, about 0..1, before any camera; planar, as numpy is several times
faster at it. What is not here: lesions
(``synthetic_lesions``), the photograph (``synthetic_camera``) and who gets which grade (``synthetic``).
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Plane = npt.NDArray[np.uint8]
Rng = np.random.Generator

_SHIFT = 4  # fractional bits of the coordinates given to OpenCV

BLOOD = np.array([0.34, 0.74, 0.66], np.float32)
"""Share of red, green and blue that a full thickness of blood absorbs: vessels and haemorrhages share it."""

_PIGMENTS = np.array([[0.66, 0.33, 0.07], [0.63, 0.20, 0.04], [0.63, 0.34, 0.19], [0.50, 0.26, 0.13]], np.float32)
_DISC = np.array([0.98, 0.80, 0.48], np.float32)


@dataclass(frozen=True)
class Vessels:
    """Vessels of one kind as tapering tubes, one list entry per generation.

    Attributes:
        paths: centre lines, (N, P, 2) each.
        widths: full widths, (N, P) each.
    """

    paths: list[Floats]
    widths: list[Floats]


@dataclass(frozen=True)
class Eye:
    """Where things are in one eye.

    Attributes:
        temporal: +1 where the temple is to the right of the picture (a left eye), else -1.
        disc: centre of the optic disc, (2,).
        fovea: centre of the macula, (2,).
        disc_radius: radius of the optic disc.
        reach: distance from disc to fovea; the scale of everything else.
        pigment: mean reflectance of the retina, (3,).
    """

    temporal: int
    disc: Floats
    fovea: Floats
    disc_radius: float
    reach: float
    pigment: Floats
    arteries: Vessels
    veins: Vessels
    sclerosis: float


@lru_cache(maxsize=4)
def unit_grid(n: int) -> tuple[Floats, Floats]:
    """Return x and y of every pixel centre of an n x n canvas, (n, n) each, within -1..1."""
    axis = ((np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def to_pixels(points: Floats, n: int) -> npt.NDArray[np.int32]:
    """Return points as the fixed-point pixel coordinates that `fill` draws with."""
    pixels: npt.NDArray[np.int32] = np.rint(((points + 1) * (n / 2) - 0.5) * (1 << _SHIFT)).astype(np.int32)
    return pixels


def fill(plane: Plane, polygon: npt.NDArray[np.int32], value: float) -> None:
    """Fill an anti-aliased polygon of `to_pixels` coordinates with a value of 0..1."""
    cv2.fillPoly(plane, [polygon], int(255 * min(1.0, value)), lineType=cv2.LINE_AA, shift=_SHIFT)


def gaussian(n: int, centre: Floats, radius: float) -> Floats:
    """Return a bell of height 1 and standard deviation `radius` on the canvas, (n, n)."""
    x, y = unit_grid(n)
    scale = -0.5 / (radius * radius)
    across = np.exp(scale * (x[0] - centre[0]) ** 2)
    down = np.exp(scale * (y[:, 0] - centre[1]) ** 2)
    bell: Floats = np.outer(down, across).astype(np.float32)
    return bell


def enlarge(knots: Floats, n: int) -> Floats:
    """Return a coarse grid, (k, k), as a smooth (n, n); cubic only up to 4 k, as the rest is as smooth and faster."""
    middle = min(n, 4 * len(knots))
    smooth = cv2.resize(knots, (middle, middle), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(smooth, (n, n), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def smooth_noise(rng: Rng, n: int, cells: int) -> Floats:
    """Return noise of unit variance at its knots that varies over 1/cells of the canvas, (n, n)."""
    knots = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return enlarge(knots, n)


def grow_eye(rng: Rng, pigment_rng: Rng, *, right: bool, sclerosis: float) -> Eye:
    """Draw the anatomy of one eye.

    Args:
        rng: of this eye.
        pigment_rng: of the patient, whose two eyes are of one colour.
        right: a right eye, whose optic disc lies on the right of the picture.
        sclerosis: 0 healthy .. 1 marked: narrow arteries with a broad reflex that press on the veins.
    """
    temporal = -1 if right else 1
    mix = pigment_rng.dirichlet(np.full(len(_PIGMENTS), 0.7))
    pigment = (mix @ _PIGMENTS).astype(np.float32)
    reach = float(rng.uniform(0.62, 0.82))
    # The camera aims anywhere between the macula and the point half way to the disc.
    aim = rng.uniform(0.0, 0.55)
    middle = rng.normal(0, 0.04, 2)
    fovea = np.array([temporal * aim * reach + middle[0], middle[1] + rng.uniform(-0.02, 0.1)], np.float32)
    disc = fovea + np.array([-temporal * reach, rng.normal(-0.05, 0.04)], np.float32)
    arteries, veins = _grow_vessels(rng, disc, temporal=temporal, reach=reach, sclerosis=sclerosis)
    return Eye(
        temporal=temporal,
        disc=disc.astype(np.float32),
        fovea=fovea,
        disc_radius=reach * float(rng.uniform(0.17, 0.23)),
        reach=reach,
        pigment=pigment,
        arteries=arteries,
        veins=veins,
        sclerosis=sclerosis,
    )


def _grow_vessels(rng: Rng, disc: Floats, *, temporal: int, reach: float, sclerosis: float) -> tuple[Vessels, Vessels]:
    vein_width = reach * rng.uniform(0.042, 0.052)
    # The healthy ratio of artery to vein is about 2:3; sclerosis narrows it below 1:2.
    ratio = rng.uniform(0.62, 0.8) - 0.26 * sclerosis
    trees = []
    for width in (vein_width * ratio, vein_width):
        path = _trunks(rng)
        taper = np.linspace(1, 0.4, path.shape[1], dtype=np.float32)
        calibre = np.array([1, 0.85, 1, 0.85, 0.4, 0.4])[:, None] * rng.uniform(0.8, 1.05, (len(path), 1))
        widths = (width * calibre * taper).astype(np.float32)
        paths, all_widths = [path], [widths]
        for children, length in ((4, 0.8), (2, 0.45)):
            path, widths = _branches(rng, path, widths, children=children, length=length)
            paths.append(path)
            all_widths.append(widths)
        to_eye = np.array([temporal * reach, reach], np.float32)
        trees.append(Vessels([disc + path * to_eye for path in paths], all_widths))
    return trees[0], trees[1]


def _trunks(rng: Rng) -> Floats:
    """Return the four arcades and two small vessels to the macula, (6, P, 2); x temporal, disc-fovea distance 1."""
    knots = np.array(
        [[[0, 0], [0.0, 0.6], [0.7, 1.05], [1.95, 0.55]], [[0, 0], [-0.1, 0.35], [-0.45, 0.75], [-0.9, 1.05]]]
    )
    knots = np.concatenate([knots, knots * [1, -1], [[[0, 0], [0.2, 0.12], [0.45, 0.2], [0.75, 0.12]]] * 2])
    knots[5, :, 1] *= -1
    knots[..., 1] *= rng.uniform(0.72, 1.05, (len(knots), 1))  # no two arcades are alike
    jitter = np.array([0.025, 0.1, 0.17, 0.22])[:, None]
    knots = knots + rng.standard_normal(knots.shape) * jitter
    t = np.linspace(0, 1, 24)[:, None]
    bernstein = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3], axis=1)
    path = np.einsum("pk,nkc->npc", bernstein, knots)
    waves = rng.uniform(2, 5, (len(knots), 1, 2)) * t * 2 * np.pi + rng.uniform(0, 6.3, (len(knots), 1, 2))
    path += rng.uniform(0.008, 0.035) * np.sin(waves) * t
    return np.asarray(path, np.float32)


def _branches(rng: Rng, parents: Floats, widths: Floats, *, children: int, length: float) -> tuple[Floats, Floats]:
    """Return branches that leave the parents at random points, (N * children, P, 2), and their widths."""
    count, steps = len(parents), parents.shape[1]
    at = (rng.uniform(0.22, 0.98, (count, children)) * (steps - 1)).astype(int).ravel()
    parent = np.repeat(np.arange(count), children)
    start, before = parents[parent, at], parents[parent, np.maximum(at - 1, 0)]
    after = parents[parent, np.minimum(at + 1, steps - 1)]
    heading = np.arctan2(after[:, 1] - before[:, 1], after[:, 0] - before[:, 0])
    side = rng.choice([-1.0, 1.0], len(parent))
    points = 12
    t = np.linspace(0, 1, points)
    turn = side * rng.uniform(0.3, 0.9, len(parent))
    bend = -turn * rng.uniform(0.0, 0.9, len(parent))
    wobble = rng.normal(0, 0.2, (len(parent), points)).cumsum(axis=1)
    angle = (heading + turn)[:, None] + bend[:, None] * t + wobble
    step = (length * rng.uniform(0.5, 1.0, len(parent)) * (1 - 0.4 * at / steps) / points)[:, None]
    path = start[:, None] + np.stack([(step * np.cos(angle)).cumsum(1), (step * np.sin(angle)).cumsum(1)], axis=-1)
    child_widths = (widths[parent, at] * rng.uniform(0.4, 0.7, len(parent)))[:, None] * (1 - 0.7 * t)
    return path.astype(np.float32), child_widths.astype(np.float32)


def draw_tubes(plane: Plane, paths: Floats, widths: Floats, strength: float = 1.0) -> None:
    """Draw tapering tubes; one thinner than a pixel is drawn fainter instead.

    Args:
        plane: canvas, (n, n), painted over.
        paths: centre lines, (N, P, 2).
        widths: full widths, (N, P).
        strength: 0..1, of a tube wider than a pixel.
    """
    n = plane.shape[0]
    tangent = np.gradient(paths, axis=1)
    length = np.maximum(np.hypot(tangent[..., 0], tangent[..., 1]), 1e-6)
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1) / length[..., None]
    # The anti-aliased fill adds about a pixel to each tube's width.
    half = (np.maximum(widths - 1.4 / n, 0.4 / n) / 2)[..., None]
    outline = np.concatenate([paths + normal * half, (paths - normal * half)[:, ::-1]], axis=1)
    faint = np.minimum(1.0, widths.mean(axis=1) * n / 2 / 1.3)
    for polygon, value in zip(to_pixels(outline, n), faint, strict=True):
        fill(plane, polygon, strength * float(value))


def absorb(image: Floats, thickness: Floats, share: Floats) -> None:
    """Darken an image, (3, n, n), in place by a filter of thickness 0..1, (n, n), with a share per colour, (3,)."""
    for channel, part in zip(image, share, strict=True):
        channel *= 1 - np.float32(part) * thickness


def cover(image: Floats, opacity: Floats, colour: Floats) -> None:
    """Lay a colour, (3,), over an image, (3, n, n), in place with an opacity of 0..1, (n, n)."""
    for channel, value in zip(image, colour, strict=True):
        channel += opacity * (np.float32(value) - channel)


def paint_retina(rng: Rng, eye: Eye, n: int) -> Floats:
    """Return the retina without its vessels: pigment, choroid, macula and optic disc, (3, n, n)."""
    texture = 1 + 0.03 * smooth_noise(rng, n, 5) + 0.025 * smooth_noise(rng, n, 24) + 0.02 * smooth_noise(rng, n, 60)
    # Choroidal vessels shine through a lightly pigmented retina as a pale mesh between darker patches.
    tessellation = rng.uniform(-0.1, 0.16)
    if tessellation > 0.04:
        mesh = np.minimum(np.abs(smooth_noise(rng, n, 17)), 1)
        texture += np.float32(tessellation) * (0.5 - mesh) * (1 - gaussian(n, eye.fovea, 0.3))
    halo = gaussian(n, eye.disc, eye.disc_radius * rng.uniform(1.5, 2.3))
    texture *= 1 + np.float32(rng.uniform(0.0, 0.3)) * halo
    image = np.asarray(texture * eye.pigment[:, None, None], np.float32)
    depth = np.float32(rng.uniform(-0.1, 0.5)) * np.array([0.6, 1.0, 1.0], np.float32)
    absorb(image, gaussian(n, eye.fovea, eye.reach * rng.uniform(0.14, 0.3)), depth)
    _paint_disc(rng, eye, image)
    return image


def _paint_disc(rng: Rng, eye: Eye, image: Floats) -> None:
    n = image.shape[-1]
    radius = eye.disc_radius * np.array([rng.uniform(0.86, 1.0), 1.0])
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)[:, None]
    circle = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    plane = np.zeros((n, n), np.uint8)
    if rng.random() < 0.3:  # a crescent of atrophy on the temporal side
        shift = np.array([eye.temporal * eye.disc_radius * 0.3, 0])
        fill(
            plane, to_pixels((eye.disc + shift + circle * radius * 1.05).astype(np.float32), n), rng.uniform(0.15, 0.4)
        )
    fill(plane, to_pixels((eye.disc + circle * radius).astype(np.float32), n), rng.uniform(0.65, 0.95))
    opacity = cv2.GaussianBlur(plane, (0, 0), n * rng.uniform(0.004, 0.012)).astype(np.float32) / 255
    colour = _DISC * (0.75 + 0.5 * eye.pigment) * rng.uniform(0.85, 1.05)
    cover(image, opacity, colour)
    cup = gaussian(
        n, eye.disc + np.array([eye.temporal * 0.2 * eye.disc_radius, 0], np.float32), eye.disc_radius * 0.36
    )
    absorb(image, cup * opacity, -np.float32(rng.uniform(0.05, 0.3)) * np.array([0.4, 1.0, 1.6], np.float32))


def paint_vessels(rng: Rng, eye: Eye, image: Floats) -> None:
    """Draw arteries, veins and the arteries' light reflex over a retina, (3, n, n), in place."""
    n = image.shape[-1]
    artery, vein, reflex = (np.zeros((n, n), np.uint8) for _ in range(3))
    # Thin ones first, so that a trunk is not cut by its own branches.
    for paths, widths in zip(eye.veins.paths[::-1], eye.veins.widths[::-1], strict=True):
        draw_tubes(vein, paths, widths)
    for paths, widths in zip(eye.arteries.paths[::-1], eye.arteries.widths[::-1], strict=True):
        draw_tubes(artery, paths, widths)
    draw_tubes(reflex, eye.arteries.paths[0], eye.arteries.widths[0] * (0.3 + 0.3 * eye.sclerosis))
    veins, arteries = vein.astype(np.float32), artery.astype(np.float32) * np.float32(0.72)
    if eye.sclerosis > 0:  # nicking: a hardened artery hides the vein on both sides of the crossing
        near = cv2.blur(cv2.dilate(artery, np.ones((3, 3), np.uint8), iterations=max(1, n // 160)), (3, 3))
        veins *= 1 - np.float32(0.85 * eye.sclerosis / 255) * near.astype(np.float32)
    avascular = 1 - np.float32(0.95) * gaussian(n, eye.fovea, eye.reach * 0.17)
    thickness = np.maximum(veins, arteries) * avascular
    absorb(image, thickness, BLOOD * np.float32(rng.uniform(0.6, 0.95) / 255))
    shine = np.array([0.5, 0.34, 0.14], np.float32) * np.float32((0.12 + 0.3 * eye.sclerosis) / 255)
    image += reflex.astype(np.float32) * shine[:, None, None]
