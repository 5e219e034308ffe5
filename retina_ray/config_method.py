"""The ``method`` section of the configuration: which paper is trained, and with which of its switches.

What a switch means for the networks and the losses is said in the method's module (``methods``).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from retina_ray.config_section import Fraction, Section, TaskName


class StudentConfig(Section):
    """What SALL's final networks learn with where it differs from the teachers, which a search then leaves alone."""

    lr: Annotated[float, Field(gt=0.0)] | None = None
    """Peak learning rate; null: optim.lr."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Dropout before the heads; null: method.dropout."""


class SallConfig(Section):
    """SALL: single-task teachers, cross labels, multi-task student."""

    name: Literal["sall"] = "sall"
    """The method."""
    tasks: tuple[TaskName, ...] = Field(default=("dr", "amd"), min_length=1)
    """Tasks to learn; each must be in the data set."""
    backbone: str = "inception_v3"
    """Any torchvision classifier by name."""
    weights: str = "imagenet"
    """Initial backbone weights: none, imagenet, or the path of a state dict or of a bundle's model.safetensors."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Dropout before the heads."""
    synergic_labels: bool = True
    """Teach each task with the teachers' soft labels where an image has no grade (Table III, SA-label)."""
    multi_task: bool = True
    """One network with a head per task; false: one single-head network per task (Table III, Multi-task)."""
    temperature: float = Field(default=3.0, gt=0.0)
    """T of Eq. 10, in cross labels, in the student's softmax and in prediction."""
    ratio: dict[TaskName, Fraction] = Field(default_factory=dict)
    """Fraction of a task's training images that enter stage 3 (Table VI); 1 where absent. An image that several tasks
    grade stays, with all its grades, if one of them keeps it."""
    loss_weight: dict[TaskName, Annotated[float, Field(ge=0.0)]] = Field(default_factory=dict)
    """Weight of a task's loss in Eq. 6; 1 where absent."""
    student: StudentConfig = StudentConfig()

    @model_validator(mode="after")
    def _tasks_are_consistent(self) -> "SallConfig":
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must differ, got {list(self.tasks)}")
        for field in ("ratio", "loss_weight"):
            for task in getattr(self, field):
                if task not in self.tasks:
                    raise ValueError(f"{field}.{task} names no task of {list(self.tasks)}")
        if not any(self.loss_weight.get(task, 1.0) for task in self.tasks):
            raise ValueError("loss_weight must be above 0 for one task at least")
        if self.synergic_labels and len(self.tasks) < 2:
            raise ValueError("synergic_labels needs two tasks or more; set method.synergic_labels=false")
        return self


_WITH_RELUS_ALONE = ("densenet", "resnet", "squeezenet", "vgg")
"""How the names of backbones begin whose activations are all nn.ReLU."""

Rate = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]
Mode = Literal["joint", "independent", "none"]


class SuperResolutionConfig(Section):
    """DeepMT-DR's super-resolution net."""

    mode: Mode = "joint"
    """``independent``: fixed in the joint stage; ``none``: no such net, images are enlarged bicubically (Fig. 10a)."""
    width: int = Field(default=32, ge=1)
    """Channels of its layers."""
    blocks: int = Field(default=5, ge=1)
    """Feature-extraction layers."""
    output: Literal["tanh", "residual"] = "tanh"
    """``tanh``: the image itself, as the authors' code; ``residual``: what is added to bicubic interpolation."""


class SegmentationConfig(Section):
    """DeepMT-DR's lesion segmentation net."""

    mode: Mode = "joint"
    """``independent``: fixed after the first stage, as the authors' code; ``none``: no such net (Fig. 10b)."""
    width: int = Field(default=64, ge=2, multiple_of=2)
    """Channels of the first layer; each deeper one has twice as many."""
    depth: int = Field(default=5, ge=2, le=7)
    """Down-transition layers."""
    gamma: tuple[Weight, ...] = (0.4, 0.2, 0.2, 0.2, 1.0)
    """Weight of each scale's map in Eq. 1, the coarsest first."""

    @model_validator(mode="after")
    def _one_weight_per_scale(self) -> "SegmentationConfig":
        if len(self.gamma) != self.depth or not any(self.gamma):
            raise ValueError(f"gamma needs depth = {self.depth} weights, not all 0, got {list(self.gamma)}")
        return self


class GradingConfig(Section):
    """DeepMT-DR's grading net and its loss."""

    backbone: str = "resnet18"
    """torchvision classifier whose convolutions it takes; a map by GMSV wants a ResNet."""
    weights: str = "imagenet"
    """Initial weights of these: none, imagenet, or the path of a state dict."""
    hidden: int = Field(default=512, ge=1)
    """Units between pyramid pooling and the grades."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Dropout before the grades."""
    loss: Literal["printed", "plus_one", "weighted"] = "plus_one"
    """Eq. 10 ``printed`` gives correct images no loss; ``plus_one`` adds 1 to the distance; ``weighted``: plain cross
    entropy with class_weights, as the authors' code."""
    class_weights: tuple[Weight, ...] = ()
    """Per grade, for loss = weighted; none given: 1 each. The authors' for DDR: 1, 10, 1.44, 25, 8."""

    @model_validator(mode="after")
    def _weights_are_used(self) -> "GradingConfig":
        if self.class_weights and self.loss != "weighted":
            raise ValueError("class_weights need method.grading.loss=weighted")
        return self


class EvidenceConfig(Section):
    """The map of what the grade rests on, which the classification-aware loss compares."""

    map: Literal["none", "guided_backprop", "grad_cam", "smooth_grad", "gmsv"] = "gmsv"
    """Table V; ``none`` compares the scores of disease instead of maps."""
    score: Literal["sum", "argmax"] = "sum"
    """y_DR of Eq. 3, of logits: the sum of the grades above 0, or (authors' code) grade 0's where that is predicted.
    Without a map, y_DR is the sum of their probabilities."""
    theta_seg: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of a layer's best overlap with the lesions that a feature must have to be selected (Eq. 2)."""
    phi_vis: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Threshold of the maps in Eqs. 5 and 9."""
    step: Literal["soft", "hard"] = "soft"
    """``soft``: thresholds are sigmoids, which train; ``hard``: as printed, without a gradient."""
    sharpness: float = Field(default=20.0, gt=0.0)
    """Slope of the sigmoids."""
    select: bool = True
    """Eq. 2: a map by gmsv rests on the features that overlap the lesions; false: on all (authors' code)."""
    binarise: bool = True
    """Compare maps with phi_vis in Eqs. 5 and 9; false: the maps as they are (authors' code)."""
    feedback: bool = True
    """Losses that compare maps teach the nets that make them; false: a map's own parameters alone (authors' code)."""
    fusion: Literal["sum", "learned"] = "sum"
    """How layers join: Algorithm 1's weights, or the authors' learned 1x1 convolutions."""
    samples: int = Field(default=4, ge=1)
    """Noisy copies of smooth_grad."""
    noise: float = Field(default=0.15, gt=0.0)
    """Their noise as a share of the image's range."""


class DeepMTLossConfig(Section):
    """Weights and forms of DeepMT-DR's loss terms that all stages share."""

    pixel: Weight = 1.0
    """Lambda of Eq. 6."""
    pixel_norm: Literal["l1", "mse"] = "l1"
    """Eq. 6 is l1; the authors' code has mse."""
    total_variation: Weight = 1e-6
    """Lambda of Eq. 7."""
    dice: Weight = 1.0
    """Of Eq. 8."""
    dice_per_lesion: bool = True
    """One ratio per lesion, averaged; false: one over all lesions together, in which the small ones vanish."""
    dice_factor: Literal[1, 2] = 2
    """The 2 of Eq. 8; 1: the authors' code, whose loss of a perfect overlap is 1/2."""
    plane_weights: tuple[Weight, Weight, Weight, Weight, Weight] = (1.0, 1.0, 1.0, 1.0, 0.1)
    """Of microaneurysms, haemorrhages, hard exudates, soft exudates and background, with dice_per_lesion."""
    focal: Weight = 0.0
    """Of the focal loss that the authors' code adds to Eq. 8 with weight 1."""
    focal_alpha: float = Field(default=0.25, gt=0.0, le=1.0)
    """Its alpha."""
    focal_gamma: float = Field(default=2.0, ge=0.0)
    """Its gamma."""

    @model_validator(mode="after")
    def _some_plane_counts(self) -> "DeepMTLossConfig":
        if not any(self.plane_weights):
            raise ValueError("plane_weights must be above 0 for one plane at least")
        return self


class RestorationStage(Section):
    """First stage: super-resolution and segmentation."""

    epochs: int = Field(default=180, ge=1)
    """Passes over the training images."""
    lr_super_resolution: Rate = 5e-5
    """Learning rate."""
    lr_segmentation: Rate = 2e-5
    """Learning rate."""
    lr_change_epoch: int | None = Field(default=None, ge=1)
    """Epochs after which the rates change (authors' code: 150); null: never."""
    lr_change_super_resolution: Rate = 0.2
    """What lr_super_resolution is multiplied by then."""
    lr_change_segmentation: Rate = 0.5
    """What lr_segmentation is multiplied by then."""
    segmentation_aware: Weight = 0.4
    """Lambda of Eq. 4."""
    segmentation_aware_on: Literal["maps", "logits"] = "maps"
    """What Eq. 4 compares in this stage: probabilities, or (authors' code) what their softmax is taken of."""
    apart: bool = False
    """Finding 2: segmentation learns from restored images by Eq. 8, but tells super-resolution nothing; Eq. 4 is left
    out. For the whole run it takes method.super_resolution.mode=independent, too."""


class GradingStage(Section):
    """Second stage: grading of high-resolution images, with the first stage's lesion maps."""

    epochs: int = Field(default=300, ge=1)
    """Passes over the training images."""
    lr_grading: Rate = 5e-5
    """Learning rate."""
    lr_evidence: Rate = 1e-5
    """Learning rate of the map's own parameters."""
    lr_change_epoch: int | None = Field(default=None, ge=1)
    """Epochs after which the rates change (authors' code: 10); null: never."""
    lr_change_grading: Rate = 0.2
    """What lr_grading is multiplied by then."""
    lr_change_evidence: Rate = 5.0
    """What lr_evidence is multiplied by then."""
    map_fit: Weight = 0.0
    """Weight of the squared distance between map and lesions, which fits a learned fusion (authors' code: 1)."""


class JointStage(Section):
    """Third stage: all three nets."""

    epochs: int = Field(default=300, ge=1)
    """Passes over the training images."""
    lr_super_resolution: Rate = 1e-5
    """Learning rate."""
    lr_segmentation: Rate = 4e-6
    """Learning rate."""
    lr_grading: Rate = 5e-5
    """Learning rate."""
    lr_evidence: Rate = 1e-5
    """Learning rate of the map's own parameters."""
    segmentation_aware: Weight = 1.0
    """Lambda of Eq. 4; 0 leaves the segmentation-aware loss out (Fig. 10c)."""
    classification_aware: Weight = 10.0
    """Lambda of Eq. 5; 0 leaves the classification-aware loss out (Fig. 10c)."""
    semi_supervised: Weight = 1.0
    """Of Eq. 9, for images without a mask."""
    semi_supervised_against: Literal["union", "each"] = "union"
    """Eq. 9's one map is compared with the chance of any lesion, or with each of the four."""
    map_fit: Weight = 0.0
    """As in the second stage (authors' code: 0.3)."""
    map_fit_of: Literal["restored", "high"] = "restored"
    """Which image's map is fitted: the restored one's, or (authors' code) the high-resolution one's."""
    map_fit_against: Literal["union", "planes"] = "union"
    """What to: the chance of any lesion, or (authors' code) each of the five planes, the background's among them."""


class DeepMTStages(Section):
    """The authors' three stages; each has its own epochs and rates instead of train.epochs and optim.lr."""

    restoration: RestorationStage = RestorationStage()
    grading: GradingStage = GradingStage()
    joint: JointStage = JointStage()


class DeepMTConfig(Section):
    """DeepMT-DR: super-resolution, lesion segmentation and grading of low-resolution images."""

    name: Literal["deepmt"] = "deepmt"
    """The method."""
    tasks: tuple[TaskName] = ("dr",)
    """The task that is graded."""
    scale: Literal[1, 2, 4, 8] = 4
    """The network's input is data.image_size divided by this; 1: high-resolution input, without super-resolution."""
    super_resolution: SuperResolutionConfig = SuperResolutionConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    grading: GradingConfig = GradingConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    loss: DeepMTLossConfig = DeepMTLossConfig()
    stages: DeepMTStages = DeepMTStages()

    @model_validator(mode="after")
    def _switches_fit(self) -> "DeepMTConfig":
        if self.scale == 1 and self.super_resolution.mode != "none":
            raise ValueError("scale = 1 leaves nothing to super-resolve; set method.super_resolution.mode=none")
        return self

    @model_validator(mode="after")
    def _map_is_of_the_backbone(self) -> "DeepMTConfig":
        kind, backbone = self.evidence.map, self.grading.backbone
        if kind == "gmsv" and not backbone.startswith("resnet"):
            raise ValueError(
                f"a map by gmsv needs the stages of a ResNet, not {backbone}; choose one as method.grading.backbone, "
                "or another method.evidence.map, such as grad_cam"
            )
        if kind == "guided_backprop" and not backbone.startswith(_WITH_RELUS_ALONE):
            raise ValueError(
                f"guided_backprop needs ReLU modules as the only activations, which {backbone} has not; choose a "
                "densenet, resnet, squeezenet or vgg as method.grading.backbone, or another method.evidence.map"
            )
        return self

    @model_validator(mode="after")
    def _map_fits_something(self) -> "DeepMTConfig":
        for stage, fit in (("grading", self.stages.grading.map_fit), ("joint", self.stages.joint.map_fit)):
            if fit and self.evidence.map == "none":
                raise ValueError(
                    f"method.stages.{stage}.map_fit = {fit:g} has no map to fit; set it to 0, or choose "
                    "another method.evidence.map than none"
                )
            if fit and self.segmentation.mode == "none":
                raise ValueError(
                    f"method.stages.{stage}.map_fit = {fit:g} has no lesions to fit a map to; set it to 0, or choose "
                    "another method.segmentation.mode than none"
                )
        return self

    @model_validator(mode="after")
    def _every_net_learns(self) -> "DeepMTConfig":
        segments = self.segmentation.mode != "none"
        if segments and not self.loss.dice and not self.loss.focal:
            raise ValueError(
                "nothing teaches segmentation, as method.loss.dice and method.loss.focal are 0; "
                "raise one of them, or set method.segmentation.mode=none"
            )
        told_by_segmentation = segments and not self.stages.restoration.apart
        if self.super_resolution.mode != "none" and not self.loss.pixel and not told_by_segmentation:
            raise ValueError(
                "nothing teaches super-resolution, as method.loss.pixel is 0 and segmentation tells it nothing; "
                "raise method.loss.pixel, or set method.super_resolution.mode=none"
            )
        return self


MethodConfig = Annotated[SallConfig | DeepMTConfig, Field(discriminator="name")]

WEIGHT_PATHS = {"sall": ("method.weights",), "deepmt": ("method.grading.weights",)}
"""By method, the keys that may hold the path of a file."""
