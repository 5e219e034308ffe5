"""Networks rewritten to grade faster: batch normalisation folded into convolutions, channels last, bfloat16.

What lives here: rewriting a copy, whose modules keep their names, so that hooks and maps find their layers. What does
not: whether the copy still answers alike (``serving.self_check``).

A batch normalisation that evaluates is a scale and a shift for each channel, and a convolution before it can take both
into its weights, where nothing else reads what the convolution makes. That is told neither by names nor by the order of
modules: one pass is watched, on the meta device, where it costs no arithmetic, and what each convolution makes is
followed to whatever reads it.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode  # the path that torch's own guide to such modes gives

from retina_ray.methods.base import Method
from retina_ray.models.deepmt.up_convolution import UpConvolution

Precision = Literal["float32", "bfloat16"]

_CONVOLUTIONS = (nn.Conv2d, UpConvolution)
"""Whose outputs are linear in their weights, channel by channel; of a class derived from them nothing is known."""

_MULTIPLYING = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Layers that bfloat16 makes faster."""

_NORMALISING = (nn.LayerNorm, nn.GroupNorm)
"""Layers whose input and weights must be of one type on a GPU; batch normalisation takes any input."""


def accelerate(method: Method, network: nn.Module, *, precision: Precision, example: Tensor) -> nn.Module:
    """Return a copy of a network that grades the same images in less time; the network itself stays as it is.

    Parameters of the copy take no gradients; activations do, so it can be explained. Modules keep their names, but a
    batch normalisation that was folded is an identity. In bfloat16 the layers that multiply compute in it, except those
    whose outputs are the answer: 8 bits would round a logit of 10 by up to 0.03.

    Args:
        method: the one that reads the network.
        network: in evaluation mode, as `Bundle.network_modules` returns it.
        precision: of the multiplications. bfloat16 is for GPUs that have it; elsewhere it is slower than float32.
        example: (B, 3, H, W), what `Method.inputs` returns; its shape matters and its values do not.
    """
    pass_ = _watch(method, network, example)
    served = copy.deepcopy(network).eval().requires_grad_(False)
    for norm, convolutions in _foldable(network, pass_):
        _fold(served, norm, convolutions)
    if precision == "bfloat16":
        _compute_in_bfloat16(served, pass_)
    return served.to(memory_format=torch.channels_last)


@dataclass(eq=False)
class _Made:
    """A tensor that layers made.

    Attributes:
        tensor: held, so that no other takes its identity.
        layers: names of those that made it, side by side along the channels.
        parts: what it was joined from; empty for the output of one layer.
        readers: for each operation that read it the batch normalisation that it was part of, or None.
    """

    tensor: Tensor
    layers: tuple[str, ...]
    parts: tuple["_Made", ...] = ()
    readers: list[str | None] = field(default_factory=list)


class _Pass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one pass: what layers make, who reads it, and what is handed out.

    Attributes:
        calls: how often each module ran, by name.
        normalised: what each batch normalisation was given, if layers made it.
        answers: names of the layers whose own output is handed out.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.normalised: dict[str, _Made] = {}
        self.answers: set[str] = set()
        self._made: dict[int, _Made] = {}
        self._running: list[str] = []
        self._norm: str | None = None

    def attach(self, network: nn.Module) -> None:
        """Let the modules of a network report."""
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda module, args, name=name: self._enter(name, module, args))
            module.register_forward_hook(lambda module, _, output, name=name: self._leave(module, output, name))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do an operation and note what it reads."""
        result = func(*args, **(kwargs or {}))
        read = [self._made.get(id(tensor)) for tensor in _tensors((args, kwargs))]
        parts = tuple(made for made in read if made is not None)
        for made in parts:
            made.readers.append(self._norm)
        if func is torch.ops.aten.cat.default and args[1:] == (1,) and len(parts) == len(read):
            self._add(_Made(result, tuple(name for part in parts for name in part.layers), parts))
        return result

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.calls[name] += 1
        self._running.append(name)
        if type(module) is nn.BatchNorm2d:
            self._norm = name
            for tensor in _tensors(args):
                if (made := self._made.get(id(tensor))) is not None:
                    self.normalised[name] = made

    def _leave(self, module: nn.Module, output: Any, name: str) -> None:
        self._running.pop()
        if type(module) is nn.BatchNorm2d:
            self._norm = None
        elif isinstance(module, _MULTIPLYING):
            self._add(_Made(output, (name,)))
        if not self._running:
            self._hand_out(output)

    def _hand_out(self, output: Any) -> None:
        """Note what leaves the network, which is for others to read."""
        for tensor in _tensors(output):
            if (made := self._made.get(id(tensor))) is not None:
                made.readers.append(None)
                self.answers.update(made.layers)

    def _add(self, made: _Made) -> None:
        self._made[id(made.tensor)] = made


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _watch(method: Method, network: nn.Module, example: Tensor) -> _Pass:
    """Watch one image pass through a copy of the network."""
    watched = copy.deepcopy(network).eval().to("meta")
    found = _Pass()
    found.attach(watched)
    with torch.no_grad(), found:
        method.probabilities(watched, torch.empty_like(example[:1], device="meta"))
    return found


def _foldable(network: nn.Module, found: _Pass) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each batch normalisation that can be folded, with the convolutions whose joined outputs it alone reads."""
    for name, made in found.normalised.items():
        read_alone = set(made.readers) == {name}
        joined_alone = all(len(part.readers) == 1 and not part.parts for part in made.parts)
        run_once = all(found.calls[each] == 1 for each in (name, *made.layers))
        convolve = all(type(network.get_submodule(each)) in _CONVOLUTIONS for each in made.layers)
        records = network.get_submodule(name).running_mean is not None
        if read_alone and joined_alone and run_once and convolve and records:
            yield name, made.layers


def _fold(network: nn.Module, name: str, convolutions: tuple[str, ...]) -> None:
    """Move a batch normalisation into the convolutions that make its channels."""
    norm = network.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In double and rounded once, so that what is folded is as exact as what was trained.
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    first = 0
    for each in convolutions:
        convolution = network.get_submodule(each)
        assert isinstance(convolution, nn.Conv2d)
        own = slice(first, first + convolution.out_channels)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, mean[own], variance[own], norm.eps, scale[own], shift[own]
        )
        first += convolution.out_channels
    network.set_submodule(name, nn.Identity())


def _compute_in_bfloat16(network: nn.Module, found: _Pass) -> None:
    """Let the layers that ran multiply in bfloat16, and give every layer that needs it an input of its own type.

    Unlike autocast this converts weights once, and holds wherever the network is entered, so for maps as well. A layer
    whose parameters others use without calling it, as in attention, did not run, and stays.
    """
    for name, module in network.named_modules():
        if not found.calls[name]:
            continue
        if isinstance(module, _MULTIPLYING) and name not in found.answers:
            module.to(torch.bfloat16)
        if isinstance(module, (*_MULTIPLYING, *_NORMALISING)):
            module.register_forward_pre_hook(_cast_to_weights)


def _cast_to_weights(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (args[0].to(weight.dtype), *args[1:])
