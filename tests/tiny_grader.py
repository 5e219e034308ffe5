"""A residual grader of three stages and a few channels, for the tests of the maps that explain graders."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

CHANNELS = (3, 4, 5)
GRADES = 5
LESIONS = 4


class Output(NamedTuple):
    logits: Tensor
    features: tuple[Tensor, ...]


class Stage(nn.Module):
    """Halves the size; a residual block follows."""

    def __init__(self, inputs: int, outputs: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.inner = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.before, self.after = activation(), activation()

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.before(self.norm(self.down(maps)))
        return self.after(maps + self.inner(maps))


class TinyGrader(nn.Module):
    """Images (B, 3, H, W), lesions (B, 4, H, W) or None -> logits (B, 5) and features at H/2, H/4, H/8, float64."""

    def __init__(self, *, activation: Callable[[], nn.Module] = nn.ReLU, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        widths = [3 + LESIONS, *channels]
        self.stages = nn.ModuleList(Stage(i, o, activation) for i, o in pairwise(widths))
        self.head = nn.Linear(channels[-1], GRADES)
        self.double()

    def forward(self, images: Tensor, lesions: Tensor | None = None) -> Output:
        planes = images.new_zeros(len(images), LESIONS, *images.shape[2:]) if lesions is None else lesions
        maps, features = torch.cat([images, planes], dim=1), []
        for stage in self.stages:
            maps = stage(maps)
            features.append(maps)
        return Output(self.head(maps.mean(dim=(2, 3))), tuple(features))


def make_grader(*, activation: Callable[[], nn.Module] = nn.ReLU) -> TinyGrader:
    """Build a grader in eval mode, with a seed under which it finds evidence in the images of `make_inputs`."""
    torch.manual_seed(7)
    return TinyGrader(activation=activation).eval()


def make_inputs(count: int, size: tuple[int, int] = (16, 16), *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Draw images in [0, 1] and lesion probabilities, of which a blob in each image is large."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, *size, generator=random, dtype=torch.float64)
    lesions = 0.05 * torch.rand(count, LESIONS, *size, generator=random, dtype=torch.float64)
    for image, planes in enumerate(lesions):
        planes[image % LESIONS, 2 + image : 7 + image, 3 : 8 + image] = 0.9
    return images, lesions
