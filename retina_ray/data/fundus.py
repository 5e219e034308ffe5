"""Where the fundus is in a photograph, and the square that is cut around it.

Cameras show the fundus as a bright disc on a dark surround, often cut off at the top and the bottom. Every later part
sees the same square: the disc's full diameter wide, black where the photograph ends. Ingest and serving both call
`prepare_bytes`. What is not here: decoding (``decode``) and judging a photograph's quality.
"""

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from retina_ray.data.decode import decode_photograph
from retina_ray.errors import DataError

PREPROCESSING_VERSION = 1
"""Grows whenever the same file would become other pixels; a model refuses images of another version."""

_WORKING_SIDE = 512  # pixels of the long side that every photograph is resized to before its disc is sought
_MIN_CONTRAST = 16  # grey levels between the surround and the fundus
_RIM_LEVEL = 0.15  # of the way from the surround's level to the fundus's; low, because illumination falls off outwards
_MIN_DIAMETER = 0.2  # of the frame's long side
_TOLERANCE = 0.02  # of the radius: how far a rim point may lie from the circle
_MIN_INLIERS = 0.5  # of the rim points; a square's best circle has less than a third
_MIN_ARC_DEGREES = 60  # the four corners of a disc that is cut on all sides still show this much
_TRIPLES = 100  # circles tried; with half of the points on the rim, one in eight is right
_JUDGES = 256  # rim points, at most, that judge the circles

_FIX = "give a colour photograph that shows the fundus as a disc on a dark surround"

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
_Number = TypeVar("_Number", bound=np.generic)


class NoFundusError(DataError):
    """A photograph without a fundus disc."""


@dataclass(frozen=True, slots=True)
class Disc:
    """The fundus disc, in pixels of the photograph; integer coordinates are pixel corners, so a centre is at + 0.5."""

    cx: float
    cy: float
    radius: float

    def scaled(self, factor: float) -> "Disc":
        """Return the same disc in a photograph that is ``factor`` times as wide and as high."""
        return Disc(self.cx * factor, self.cy * factor, self.radius * factor)


def find_disc(image: Pixels, *, name: str = "photograph") -> Disc:
    """Find the fundus disc as the circle that most points of its bright region's rim agree on.

    Only the rim inside the frame counts, so a disc cut by the frame keeps its full radius; notches, labels and dark
    crescents are outvoted. The answer depends on the pixels alone: the random draws are seeded.

    Args:
        image: uint8 (H, W, 3) in 0..255.
        name: what error messages call it.

    Returns:
        The disc; its centre lies in the frame.

    Raises:
        NoFundusError: the frame is uniform, or its bright region is no disc, too small, or fills the frame.
    """
    height, width = image.shape[:2]
    scale = _WORKING_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    working = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    red, green, blue = cv2.split(working)
    grey = np.asarray(cv2.max(cv2.max(red, green), blue), dtype=np.uint8)  # many times as fast as max(axis=2)
    disc = _fit_circle(_rim(grey, name), size, name).scaled(max(height, width) / max(size))
    if 2 * disc.radius < _MIN_DIAMETER * max(height, width):
        raise NoFundusError(f"the fundus is only {2 * disc.radius:.0f} pixels wide", name, _FIX)
    return disc


def crop_disc(image: Pixels, disc: Disc, size: int) -> Pixels:
    """Cut the square around a disc, black where it leaves the photograph, and resize it.

    Args:
        image: uint8 (H, W, 3).
        disc: in pixels of ``image``.
        size: S, pixels of a side of the result.

    Returns:
        uint8 (S, S, 3); the disc touches all four sides.
    """
    side = max(1, round(2 * disc.radius))
    square = _cut(image, disc, side)
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (size, size), interpolation=interpolation), dtype=np.uint8)


def prepare(image: Pixels, size: int, *, name: str = "photograph") -> Pixels:
    """Find the disc and return its square, uint8 (S, S, 3).

    Raises:
        NoFundusError: as `find_disc`.
    """
    return crop_disc(image, find_disc(image, name=name), size)


def prepare_bytes(data: bytes, *, name: str, size: int) -> Pixels:
    """Turn a photograph's file into the square every model sees: uint8 (S, S, 3) RGB.

    As `find_and_crop`, which returns more.
    """
    return find_and_crop(data, name=name, size=size).pixels


@dataclass(frozen=True, slots=True)
class Square:
    """The square that was cut from a photograph.

    Attributes:
        pixels: uint8 (S, S, 3) RGB.
        disc: it was cut around, in pixels of the photograph as decoded.
        height, width: of the photograph as decoded, which may be a fraction of the file's.
    """

    pixels: Pixels
    disc: Disc
    height: int
    width: int


def find_and_crop(data: bytes, *, name: str, size: int) -> Square:
    """Decode a photograph's file, find its disc, cut the square around it and resize that.

    A JPEG is decoded at reduced size, and once more with more pixels where the disc turns out to be a small part of
    the frame, so that the square is never enlarged from fewer pixels than the file holds.

    Args:
        data: the file.
        name: what error messages call it.
        size: S, pixels of a side.

    Raises:
        CorruptImageError: the file cannot be decoded.
        NoFundusError: it shows no fundus disc.
    """
    image = decode_photograph(data, name=name, target=size)
    disc = find_disc(image, name=name)
    if 2 * disc.radius < size:
        finer = decode_photograph(data, name=name, target=round(size * min(image.shape[:2]) / (2 * disc.radius)) + 1)
        disc, image = disc.scaled(max(finer.shape) / max(image.shape)), finer
    return Square(crop_disc(image, disc, size), disc, *image.shape[:2])


def is_drawn_on(drawing: npt.NDArray[np.bool_], square: Square) -> bool:
    """Tell whether a drawing (H, W) has the proportions of the photograph that a square was cut from."""
    height, width = drawing.shape
    scale = width / square.width
    rounding = max(1.0, scale)  # reduced decoding rounds a side up by one pixel
    return bool(abs(height - scale * square.height) <= rounding)


def crop_drawing(drawing: npt.NDArray[np.bool_], square: Square) -> npt.NDArray[np.bool_]:
    """Cut a drawn finding the way its photograph was cut: (S, S) bool.

    A pixel is set where any of those it stands for is, so that microaneurysms of a few pixels are kept.

    Args:
        drawing: (H, W), drawn on the photograph, see `is_drawn_on`.
        square: what was cut from the photograph.
    """
    disc, size = square.disc.scaled(drawing.shape[1] / square.width), len(square.pixels)
    side = max(1, round(2 * disc.radius))
    cut = _cut(drawing.astype(np.float32), disc, side)
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(cut, (size, size), interpolation=interpolation) > 0, dtype=np.bool_)


def _cut(image: npt.NDArray[_Number], disc: Disc, side: int) -> npt.NDArray[_Number]:
    """Return the square of that side around a disc, zero where it leaves the image (H, W, ...)."""
    left, top = round(disc.cx - side / 2), round(disc.cy - side / 2)
    height, width = image.shape[:2]
    square = np.zeros((side, side, *image.shape[2:]), dtype=image.dtype)
    rows, columns = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    return square


def _rim(grey: Pixels, name: str) -> Points:
    """Return the outline (n, 2) of x, y of the largest region brighter than the surround, less what the frame cuts."""
    frame = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    surround = float(np.percentile(frame, 1))  # so low because the corners' tips may be all that is dark
    fundus = float(np.percentile(grey, 97))  # so high because the smallest disc covers but a few per cent
    if fundus - surround < _MIN_CONTRAST:
        framed_brightly = surround - float(grey.min()) >= _MIN_CONTRAST  # as a page is
        what = "the photograph shows no dark surround" if framed_brightly else "the photograph is uniform"
        raise NoFundusError(what, name, _FIX)
    level = surround + max(_MIN_CONTRAST / 2, _RIM_LEVEL * (fundus - surround))
    _, bright = cv2.threshold(cv2.GaussianBlur(grey, (5, 5), 0), level, 255, cv2.THRESH_BINARY)
    bright = cv2.morphologyEx(bright, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        raise NoFundusError("the photograph has no bright region", name, _FIX)
    points = max(outlines, key=cv2.contourArea)[:, 0, :].astype(np.float64)
    height, width = grey.shape
    margin = 3  # opening and blurring bend the outline where it meets the frame
    inside = (points >= margin).all(axis=1) & (points[:, 0] < width - margin) & (points[:, 1] < height - margin)
    return np.asarray(points[inside] + 0.5, dtype=np.float64)


def _fit_circle(points: Points, size: tuple[int, int], name: str) -> Disc:
    """Fit the circle that most points agree on (RANSAC), then refine it by least squares on these."""
    if len(points) < 32:
        raise NoFundusError("the photograph shows no dark surround", name, _FIX)
    rng = np.random.default_rng(0)
    centres, radii = _circumcircles(points[rng.integers(len(points), size=(_TRIPLES, 3))])
    plausible = (centres >= 0).all(axis=1) & (centres <= size).all(axis=1) & (radii > 8) & (radii < np.hypot(*size))
    centres, radii = centres[plausible], radii[plausible]
    judges = points[:: -(-len(points) // _JUDGES)]
    agreeing = _on_circle(judges, centres[:, None], radii[:, None])
    support = agreeing.mean(axis=1)
    if support.max(initial=0) < _MIN_INLIERS:
        raise NoFundusError("the bright region is no disc", name, _FIX)
    disc = _least_squares_circle(judges[agreeing[support.argmax()]])
    rim = points[_on_circle(points, np.array([disc.cx, disc.cy]), np.array(disc.radius))]
    bearings = np.degrees(np.arctan2(rim[:, 1] - disc.cy, rim[:, 0] - disc.cx))
    if 5 * len(np.unique(bearings // 5)) < _MIN_ARC_DEGREES:
        raise NoFundusError("too little of the disc's rim is in the frame", name, _FIX)
    return _least_squares_circle(rim)


def _on_circle(points: Points, centre: Points, radius: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which points (..., 2) lie on a circle, within the tolerance."""
    distance = np.hypot(points[:, 0] - centre[..., 0], points[:, 1] - centre[..., 1])
    return np.asarray(np.abs(distance - radius) < _TOLERANCE * radius, dtype=np.bool_)


def _circumcircles(triples: npt.NDArray[np.float64]) -> tuple[Points, npt.NDArray[np.float64]]:
    """Return centres (n, 2) and radii (n,) of the circles through triples of points (n, 3, 2); degenerate ones NaN."""
    origin = triples[:, 0]
    b, c = triples[:, 1] - origin, triples[:, 2] - origin
    b2, c2 = (b**2).sum(axis=1), (c**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
        x = (c[:, 1] * b2 - b[:, 1] * c2) / cross
        y = (b[:, 0] * c2 - c[:, 0] * b2) / cross
    offset = np.stack([x, y], axis=1)
    return origin + offset, np.linalg.norm(offset, axis=1)


def _least_squares_circle(points: Points) -> Disc:
    """Fit x^2 + y^2 = 2 a x + 2 b y + c, linear in a, b and c."""
    middle = points.mean(axis=0)
    x, y = (points - middle).T
    (a, b, c), *_ = np.linalg.lstsq(np.stack([2 * x, 2 * y, np.ones_like(x)], axis=1), x**2 + y**2, rcond=None)
    return Disc(float(a + middle[0]), float(b + middle[1]), float(np.sqrt(c + a**2 + b**2)))
