"""The photograph of a drawn retina: light, haze, field stop, exposure, blur and noise of a fundus camera.

All of it is nuisance: nothing here may know the grade. The mean colour of a photograph is drawn here too, and the
picture is scaled to it, so that lesions cannot be graded by how bright or red an image is.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from retina_ray.data.synthetic_anatomy import Floats, Rng, cover, gaussian, smooth_noise, unit_grid

_HAZE = np.array([0.75, 0.6, 0.5], np.float32)


@dataclass(frozen=True)
class Camera:
    """What the two photographs of a patient have in common.

    Attributes:
        radius: of the round field, in half canvases.
        cut: half height at which the sensor cuts the field off; 1 or more does not cut.
        notch: the field has the small mark at its edge that tells up from down.
        cast: gain of red, green and blue, (3,).
    """

    radius: float
    cut: float
    notch: bool
    cast: Floats


def choose_camera(rng: Rng) -> Camera:
    """Draw a camera."""
    cut = rng.uniform(0.78, 0.95) if rng.random() < 0.5 else 1.0
    cast = np.exp(rng.normal(0, [0.04, 0.06, 0.2])).astype(np.float32)
    return Camera(float(rng.uniform(0.92, 0.995)), float(cut), bool(rng.random() < 0.3), cast)


def photograph(rng: Rng, reflectance: Floats, pigment: Floats, camera: Camera, *, size: int) -> npt.NDArray[np.uint8]:
    """Return the photograph of a retina.

    Args:
        rng: of this photograph.
        reflectance: the painted retina, (3, n, n), about 0..1; used up.
        pigment: the reflectance of its background, (3,), from which the photograph's mean colour is drawn.
        camera: of this patient.
        size: S, at most n.

    Returns:
        (S, S, 3) uint8 RGB, black outside the field.
    """
    _illuminate(rng, reflectance)
    image = np.stack([cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in reflectance])
    blur = rng.uniform(0.0, 0.006) * size
    if blur > 0.25:
        image = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in image])
    field = _field(camera, size)
    target = 255 * pigment * camera.cast * rng.uniform(0.75, 1.15)
    mean = (image.reshape(3, -1) @ field.ravel()) / field.sum()
    image *= (target / mean).astype(np.float32)[:, None, None]
    # Brightness noise of all colours and colour noise of each; one field of grains, turned over, serves them all.
    grain = rng.standard_normal((size, size), dtype=np.float32)
    gray, colour = rng.uniform(0.5, 2.5, 2).astype(np.float32)
    for channel, own in zip(image, (grain.T, grain[::-1], grain[:, ::-1]), strict=True):
        channel += gray * grain + colour * own
        channel *= field
    image += np.float32(rng.uniform(0, 4))  # a sensor's black is not quite black
    photo: npt.NDArray[np.uint8] = cv2.merge(list(np.clip(image, 0, 255).astype(np.uint8)))
    return photo


def _illuminate(rng: Rng, image: Floats) -> None:
    n = image.shape[-1]
    x, y = unit_grid(n)
    tilt = rng.normal(0, 0.1, 2).astype(np.float32)
    light = 1 - np.float32(rng.uniform(0.05, 0.4)) * (x * x + y * y) + tilt[0] * x + tilt[1] * y
    light += np.float32(rng.uniform(0.03, 0.1)) * smooth_noise(rng, n, 3)
    image *= np.maximum(light, np.float32(0.2))
    haze = rng.uniform(-0.14, 0.14)
    if haze > 0.02:  # cataract or a lens off axis scatters light into the picture, more on one side
        angle = rng.uniform(0, 2 * np.pi)
        centre = np.array([np.cos(angle), np.sin(angle)], np.float32) * np.float32(rng.uniform(0.3, 1.1))
        cover(image, np.float32(haze) * gaussian(n, centre, float(rng.uniform(0.4, 1.0))), _HAZE)


def _field(camera: Camera, size: int) -> Floats:
    """Return the field stop, (S, S), 1 inside and 0 outside with an edge of about a pixel."""
    x, y = unit_grid(size)
    edge = (camera.radius - np.sqrt(x * x + y * y)) * (size / 2)
    if camera.notch:
        corner = np.float32(camera.radius * 0.7071)
        mark = (0.04 - np.maximum(np.abs(x - corner), np.abs(y + corner))) * (size / 2)
        edge = np.maximum(edge, mark)
    cut = (camera.cut - np.abs(y)) * (size / 2) if camera.cut < 1 else edge
    field: Floats = np.clip(np.minimum(edge, cut), 0, 1).astype(np.float32)
    return field
