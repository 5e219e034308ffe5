"""Comparing a map with a threshold: as printed, without a gradient; as a smooth stand-in with one; or not at all.

What lives here: the step of DeepMT-DR's Eqs. 2, 5 and 9. What does not: the selection of features in Eq. 2 and its
learnt thresholds (``explain/gmsv.py``).

Shapes: any; a threshold is one number, or a tensor that broadcasts to the values.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from retina_ray.losses.precision import at_least_float32

Step = Literal["soft", "hard", "none"]


def step(
    values: Float[Tensor, "*shape"], threshold: Tensor | float, *, kind: Step, sharpness: float
) -> Float[Tensor, "*shape"]:
    """Compare values with a threshold (DeepMT-DR, ``Vis > phi_vis`` in Eqs. 5 and 9; both comparisons of Eq. 2).

    Args:
        values: any shape, any real numbers.
        threshold: phi_vis, for example; values in [0, 1] want one in (0, 1). The soft step's gradient reaches it.
        kind: ``hard`` is `hard_step`, the printed comparison; ``soft`` is `soft_step`; ``none`` leaves the values as
            they are, as the authors' code does.
        sharpness: > 0, of the soft step alone.

    Returns:
        In [0, 1] but for ``none``, the shape of ``values``, float32 or better.

    Raises:
        ValueError: the step is soft and the sharpness is not positive.
    """
    if kind == "none":
        return at_least_float32(values)
    if kind == "hard":
        return hard_step(values, threshold)
    return soft_step(values, threshold, sharpness)


def hard_step(values: Float[Tensor, "*shape"], threshold: Tensor | float) -> Float[Tensor, "*shape"]:
    """Return 1 where a value exceeds the threshold and 0 elsewhere, without a gradient (DeepMT-DR, Eqs. 2, 5 and 9)."""
    return (values > threshold).to(at_least_float32(values).dtype)


def soft_step(values: Float[Tensor, "*shape"], threshold: Tensor | float, sharpness: float) -> Float[Tensor, "*shape"]:
    """Return ``sigmoid(sharpness * (value - threshold))``, the smooth stand-in for `hard_step`.

    Differs from the paper: Eqs. 5 and 9 print the comparison, whose derivative is 0 wherever it has one. This tends
    to it as the sharpness grows, and is 1/2 at the threshold.

    Args:
        values: any shape.
        threshold: where the result is 1/2.
        sharpness: > 0; the slope at the threshold is a quarter of it.

    Raises:
        ValueError: the sharpness is not positive.
    """
    if not sharpness > 0:
        raise ValueError(f"sharpness must be positive, got {sharpness}")
    return (sharpness * (at_least_float32(values) - threshold)).sigmoid()
