"""What a stage reads its images as."""

import pytest
import torch

from retina_ray.config import TrainConfig
from retina_ray.data.batch import normalise, to_unit_range
from retina_ray.training.stage import image_dtype
from tests.deepmt import method_of
from tests.helpers import tiny_grader

HALF, CUDA, CPU = TrainConfig(precision="bf16"), torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize("stage", ["restoration", "grading", "joint"])
def test_images_that_others_are_compared_with_are_never_rounded(stage: str) -> None:
    assert image_dtype(method_of(stage), HALF, CUDA) == torch.float32


def test_images_that_are_only_graded_are_read_in_half_the_memory_on_a_gpu() -> None:
    assert image_dtype(tiny_grader(), HALF, CUDA) == torch.bfloat16
    assert image_dtype(tiny_grader(), HALF, CPU) == torch.float32
    assert image_dtype(tiny_grader(), TrainConfig(precision="fp32"), CUDA) == torch.float32


def test_bfloat16_is_coarser_than_eight_bits() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    errors = {
        dtype: float((255 * to_unit_range(normalise(grey, dtype)) - grey).abs().max())
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert errors[torch.float32] < 1e-3
    assert errors[torch.bfloat16] > 0.3
