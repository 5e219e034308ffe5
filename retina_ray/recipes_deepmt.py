"""The named runs of DeepMT-DR: the paper's, one for two CPU cores, and its ablations and baselines by table and figure.

An ablation is the paper's run with a few values replaced; on a smaller machine, give it the sizes of ``deepmt_debug``
with ``--config``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from retina_ray.config import AugmentConfig, DataConfig, OptimConfig, RunConfig, TrainConfig, override
from retina_ray.config_method import DeepMTConfig

Recipe = Callable[[], RunConfig]

ALONE = {
    "method.super_resolution.mode": "none",
    "method.segmentation.mode": "none",
    "method.evidence.map": "none",
}
"""A grading network by itself, on images enlarged bicubically."""


def deepmt_dr() -> RunConfig:
    """DeepMT-DR as in the paper: 256 px input, 1024 px output, ResNet-18 with ImageNet weights, three stages.

    Sources: sizes, scale and network section IV; from the authors' public code, where the paper leaves them open:
    widths, weights of losses, learning rates 5e-5 / 2e-5 (stage 1), 5e-5 (2) and 1e-5 / 4e-6 / 5e-5 (3), Adam, 180, 300
    and 300 epochs, batches of 2, no augmentation. Ours, as the deviation register of ``methods/deepmt`` says: gamma of
    Eq. 1, the form of Eq. 8, the + 1 in Eq. 10. theta_seg and phi_vis are published nowhere: 0.5 each.
    Hardware: GPUs; how long it takes has not been measured.
    """
    return RunConfig(
        name="deepmt-dr",
        data=DataConfig(image_size=1024),
        augment=AugmentConfig(scale=0.0, rotate90=False, flip=False, skew=0.0),
        method=DeepMTConfig(),
        optim=OptimConfig(),
        train=TrainConfig(global_batch_size=2, patience=None),
    )


def deepmt_debug() -> RunConfig:
    """DeepMT-DR small enough for two CPU cores: 64 px input, 256 px output, narrow nets from scratch, minutes.

    Expect more than bicubic interpolation's PSNR, and lesions and grades found above chance, on drawn images with masks
    (``retina-ray data synth --tasks dr --size 256``); not the paper's figures.
    """
    return override(
        deepmt_dr(),
        {
            "name": "deepmt-debug",
            "data.image_size": 256,
            "method.super_resolution.width": 16,
            "method.super_resolution.blocks": 2,
            "method.super_resolution.output": "residual",
            "method.segmentation.width": 8,
            "method.segmentation.depth": 4,
            "method.segmentation.gamma": [0.2, 0.2, 0.2, 1.0],
            "method.grading.weights": "none",
            "method.grading.hidden": 64,
            "method.grading.dropout": 0.2,
            "method.loss.pixel": 100.0,  # in 200 steps Eq. 6 is not heard beside Eq. 8 otherwise
            "method.stages.restoration.epochs": 8,
            "method.stages.restoration.lr_super_resolution": 2e-3,  # from scratch, and few steps
            "method.stages.restoration.lr_segmentation": 6e-3,
            "method.stages.grading.epochs": 6,
            "method.stages.grading.lr_grading": 1e-4,  # of 10,752 pooled features into one layer, more ends its ReLUs
            "method.stages.joint.epochs": 2,
            "method.stages.joint.lr_super_resolution": 1e-3,
            "method.stages.joint.lr_segmentation": 1e-3,
            "method.stages.joint.lr_grading": 5e-5,
            "optim.schedule": "cosine",
            "train.global_batch_size": 4,
            "evaluate.bootstrap": 200,
            "runtime.workers": 1,  # of two, each would normalise by batches of 2
            "runtime.checkpoint.every_s": 20.0,
        },
    )


def _variant(name: str, summary: str, changes: Mapping[str, Any]) -> Recipe:
    def recipe() -> RunConfig:
        return override(deepmt_dr(), {"name": name.replace("_", "-"), **changes})

    recipe.__doc__ = summary
    return recipe


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "without_isr": ("Fig. 10a: without super-resolution.", {"method.super_resolution.mode": "none"}),
    "independent_isr": ("Fig. 10a: super-resolution fixed.", {"method.super_resolution.mode": "independent"}),
    "without_segmentation": ("Fig. 10b: without lesion segmentation.", {"method.segmentation.mode": "none"}),
    "independent_segmentation": ("Fig. 10b: segmentation fixed.", {"method.segmentation.mode": "independent"}),
    "without_sal": (
        "Fig. 10c: without the segmentation-aware loss.",
        {"method.stages.restoration.segmentation_aware": 0.0, "method.stages.joint.segmentation_aware": 0.0},
    ),
    "without_cal": (
        "Fig. 10c: without the classification-aware loss.",
        {"method.stages.joint.classification_aware": 0.0},
    ),
    "without_sal_cal": (
        "Fig. 10c: without both.",
        {
            "method.stages.restoration.segmentation_aware": 0.0,
            "method.stages.joint.segmentation_aware": 0.0,
            "method.stages.joint.classification_aware": 0.0,
        },
    ),
    "map_none": ("Table V: W/O vis, scores instead of maps.", {"method.evidence.map": "none"}),
    "map_gbp": ("Table V: maps by guided backprop.", {"method.evidence.map": "guided_backprop"}),
    "map_grad_cam": ("Table V: maps by Grad-CAM.", {"method.evidence.map": "grad_cam"}),
    "map_smooth_grad": ("Table V: maps by SmoothGrad.", {"method.evidence.map": "smooth_grad"}),
    "input_512": ("Table VI: 512 px input, enlarged twice.", {"method.scale": 2}),
    "masks_25": ("Section V-D: a quarter of the lesion masks.", {"data.masks": 0.25}),
    "masks_50": ("Section V-D: half of the lesion masks.", {"data.masks": 0.5}),
    "masks_75": ("Section V-D: three quarters of the lesion masks.", {"data.masks": 0.75}),
    "resnet18": ("Table I: ResNet-18 alone, on bicubic enlargement.", ALONE),
    "inception_v3": (
        "Table I: Inception-v3 alone, on bicubic enlargement.",
        {**ALONE, "method.grading.backbone": "inception_v3"},
    ),
    "densenet121": (
        "Table I: DenseNet-121 alone, on bicubic enlargement.",
        {**ALONE, "method.grading.backbone": "densenet121"},
    ),
    **{
        f"{backbone}_at_{pixels}": (
            f"Finding 1, Fig. 3a: {backbone} with spatial pyramid pooling at {pixels} px.",
            {**ALONE, "method.scale": 1, "data.image_size": pixels, "method.grading.backbone": backbone},
        )
        for backbone in ("vgg16", "squeezenet1_1", "resnet18", "densenet121")
        for pixels in (128, 256, 512, 1024)
    },
    "isr_and_grading": (
        "Finding 2, Fig. 4a: super-resolution and grading trained together.",
        {"method.segmentation.mode": "none"},
    ),
    "isr_then_segmentation": (
        "Finding 2, Fig. 4b: segmentation that tells super-resolution nothing; deepmt_dr trains them together.",
        {"method.stages.restoration.apart": True, "method.super_resolution.mode": "independent"},
    ),
    "isr_then_grading": (
        "Finding 2, Fig. 4a: grading of a fixed super-resolution.",
        {
            "method.segmentation.mode": "none",
            "method.evidence.map": "none",
            "method.super_resolution.mode": "independent",
        },
    ),
}

RECIPES: dict[str, Recipe] = {
    "deepmt_dr": deepmt_dr,
    "deepmt_debug": deepmt_debug,
    **{
        name: _variant(name, summary, changes)
        for name, (summary, changes) in ((f"deepmt_{key}", value) for key, value in VARIANTS.items())
    },
}
