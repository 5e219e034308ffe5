"""The named runs; each number cites where it comes from.

A recipe is a function that returns a whole configuration. ``sall_debug`` differs from ``sall`` in values only, so what
the demo shows is the code path of a real run.
"""

import difflib
from collections.abc import Callable

from retina_ray import recipes_deepmt
from retina_ray.config import RunConfig, override
from retina_ray.errors import ConfigError


def sall() -> RunConfig:
    """SALL as in the paper: InceptionV3 at 299 px from ImageNet weights, Adam 1e-5, batch 32, T = 3.

    Sources: backbone section IV-A; Adam Table II; T the best of Table III, whose DR 78.01 % and AMD 81.25 % are on the
    authors' private images; 299 px, batch 32, 32 epochs, dropout 0.5 and patience 10 from their public code.
    Hardware: GPUs; how long it takes has not been measured.
    """
    return RunConfig(name="sall")


def sall_debug() -> RunConfig:
    """SALL small enough for two CPU cores: 64 px, MobileNetV3-small from scratch, a few minutes with 2 workers.

    Expect both tasks well above chance on the synthetic data of ``retina-ray demo``; not the paper's figures.
    Hardware: two CPU cores, about four minutes with that data.
    """
    return override(
        sall(),
        {
            "name": "sall-debug",
            "data.image_size": 64,
            "method.backbone": "mobilenet_v3_small",
            "method.weights": "none",
            "method.dropout": 0.2,
            "optim.lr": 2e-3,  # from scratch: Table II's 1e-5 presumes ImageNet weights
            "optim.schedule": "cosine",
            "train.epochs": 12,
            "train.patience": None,
            "train.batch_norm_momentum": 0.1,
            "evaluate.bootstrap": 200,
            "runtime.workers": 2,
            "runtime.checkpoint.every_s": 20.0,
        },
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {"sall": sall, "sall_debug": sall_debug, **recipes_deepmt.RECIPES}


def load_recipe(name: str) -> RunConfig:
    """Return a named run.

    Raises:
        ConfigError: there is none of that name; the nearest is named.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise ConfigError("unknown recipe", name, f"did you mean {near}? `retina-ray recipes list` shows all")
    return RECIPES[name]()
