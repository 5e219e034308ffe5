"""What tensors hold at most while something runs: counted at every operation, so the same on any machine."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """A context that counts the bytes of tensors made in it, backward passes included, until they are released.

    Args:
        there_before: tensors that are not counted, nor views of them, such as weights.
    """

    def __init__(self, there_before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._bytes = 0
        self._sizes = {_address(tensor): 0 for tensor in there_before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor) not in self._sizes:
                storage = tensor.untyped_storage()
                self._sizes[_address(tensor)] = storage.nbytes()
                self._bytes += storage.nbytes()
                weakref.finalize(storage, self._release, _address(tensor))
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        return result

    def _release(self, address: int) -> None:
        self._bytes -= self._sizes.pop(address)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
