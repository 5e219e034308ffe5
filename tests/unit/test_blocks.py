"""Which parts of torchvision's classifiers are blocks: together most of the network, none of them too much of it."""

import pytest
import torch
from torch import nn
from torchvision import models

from retina_ray.models.blocks import blocks


@pytest.mark.parametrize(
    ("name", "number"),
    [("resnet18", 8), ("inception_v3", 16), ("densenet121", 7), ("squeezenet1_1", 9), ("vit_b_16", 13), ("vgg11", 2)],
)
def test_blocks_are_those_of_the_family(name: str, number: int) -> None:
    options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        found = blocks(models.get_model(name, weights=None, **options))
    assert len(found) == number
    modules = [part for block in found for part in block.modules()]
    assert len(set(modules)) == len(modules), "none lies within another"


def test_what_overwrites_its_input_is_no_block() -> None:
    kept, overwriting = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)), nn.Sequential(nn.ReLU(inplace=True))
    assert blocks(nn.Sequential(kept, overwriting)) == [kept]
