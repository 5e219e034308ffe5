"""The precision that losses are computed in. What lives here: one function; the losses are its neighbours."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return bfloat16 or float16 values as float32 and all others as they are.

    A sum over the pixels of a photograph needs more than the 8 bits of a bfloat16: above 256 it would not grow by 1.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))
