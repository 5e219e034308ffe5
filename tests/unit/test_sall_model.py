"""The multi-task network: its shapes, its dropout and what it refuses."""

import pytest
import torch
from torch import nn

from retina_ray.models.sall import MultiTaskGrader

GRADES = {"dr": 5, "amd": 4, "arteriosclerosis": 2}


def grader(*, dropout: float = 0.0) -> MultiTaskGrader:
    torch.manual_seed(0)
    return MultiTaskGrader(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), 12, grades=GRADES, dropout=dropout)


def test_every_task_gets_logits_of_its_own_grades() -> None:
    logits = grader()(torch.randn(3, 3, 8, 6))
    assert {task: tuple(values.shape) for task, values in logits.items()} == {
        "dr": (3, 5),
        "amd": (3, 4),
        "arteriosclerosis": (3, 2),
    }
    assert any(values.min() < 0 for values in logits.values())  # raw logits, not probabilities


def test_a_task_does_not_see_the_other_tasks_heads() -> None:
    network, images = grader(), torch.randn(2, 3, 8, 8)
    before = network(images)
    nn.init.zeros_(network.heads["amd"].weight)
    after = network(images)
    torch.testing.assert_close(after["dr"], before["dr"], rtol=0, atol=0)
    assert not torch.equal(after["amd"], before["amd"])


def test_dropout_acts_on_the_features_while_training_alone() -> None:
    network, images = grader(dropout=0.5), torch.randn(4, 3, 8, 8)
    assert not torch.equal(network(images)["dr"], network(images)["dr"])
    network.eval()
    torch.testing.assert_close(network(images)["dr"], network(images)["dr"], rtol=0, atol=0)
    expected = network.heads["dr"](network.backbone(images))
    torch.testing.assert_close(network(images)["dr"], expected, rtol=0, atol=0)


def test_tasks_share_one_draw_of_dropout() -> None:
    network, seen = grader(dropout=0.5), []
    for head in network.heads.values():
        head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network(torch.randn(4, 3, 8, 8))
    assert len(seen) == 3
    assert all(torch.equal(features, seen[0]) for features in seen)


@pytest.mark.parametrize("grades", [{}, {"dr": 5, "amd": 1}])
def test_tasks_without_grades_are_refused(grades: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="two or more grades"):
        MultiTaskGrader(nn.Flatten(), 12, grades=grades, dropout=0.0)
