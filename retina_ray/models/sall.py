"""SALL's network: one shared backbone and a linear head per task.

What lives here: the module. What does not: building the backbone (``models/backbones.py``), the temperature and the
loss (``losses/sall.py``), and what is trained when (``methods/sall.py``).

Shapes: ``B`` batch, ``H W`` image; the number of grades K differs between tasks.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn


class MultiTaskGrader(nn.Module):
    """Grades several diseases from shared features by hard parameter sharing (SALL, Eq. 3, Fig. 4).

    ``f_M = F(x, theta_M)`` is the backbone; ``f_t = F(f_M, theta_t)`` is one linear layer for each task t.
    With one task it is the separate network of section III-A.

    Args:
        backbone: images (B, 3, H, W) -> features (B, num_features).
        num_features: F, the backbone's number of outputs.
        grades: number of grades K of each task, by task name.
        dropout: probability with which a feature is zeroed before the heads while training, 0..1 (the authors'
            code has 0.5; the paper names none).

    Raises:
        ValueError: no task, or a task with fewer than two grades.
    """

    def __init__(self, backbone: nn.Module, num_features: int, *, grades: Mapping[str, int], dropout: float) -> None:
        super().__init__()
        if not grades or min(grades.values()) < 2:
            raise ValueError(f"grades must name at least one task with two or more grades, got {dict(grades)}")
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({task: nn.Linear(num_features, count) for task, count in grades.items()})

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B _"]]:
        """Return the raw logits (B, K) of every task, without temperature.

        Args:
            images: (B, 3, H, W), ImageNet-normalised.
        """
        features = self.dropout(self.backbone(images))
        return {task: head(features) for task, head in self.heads.items()}
