"""The mean of what is known."""

import math

import numpy as np


def known_mean(values: np.ndarray) -> float:
    """Return the mean of the values, of any shape, that are not NaN, in double precision; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else math.nan
