"""The configuration of a run: one pydantic tree, read from recipes, YAML files and dotted overrides.

The sections ``data``, ``augment``, ``method``, ``optim`` and ``train`` decide what the weights become, so
artifacts are addressed by them; ``evaluate``, ``runtime`` and ``tracking`` do not. What the named runs are
is in ``recipes``.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from retina_ray import yaml_dialect
from retina_ray.config_method import DeepMTConfig, MethodConfig, SallConfig
from retina_ray.config_runtime import RuntimeConfig
from retina_ray.config_section import DecayRate, Fraction, Section
from retina_ray.errors import ConfigError


class DataConfig(Section):
    """Which images a run sees."""

    path: str = ""
    """Data set: a folder or an s3:// prefix that holds dataset.json."""
    image_size: int = Field(default=299, ge=32, le=2048)
    """Side of the square network input, pixels."""
    hide_grades: Literal["none", "half"] = "none"
    """``half`` keeps one seeded grade per training image that has several, so that each image serves one task."""
    folds: int | None = Field(default=None, ge=3, le=20)
    """Cross-validation: replace the stored splits by this many patient-grouped folds."""
    fold: int = Field(default=0, ge=0)
    """The fold that is the test split; the next one is the validation split."""
    keep_test: bool = False
    """Folds are dealt among the training and validation images alone, and data.fold names the validation split."""
    hold_out: str | None = Field(default=None, min_length=1)
    """External validation: all images of this source are the test split, those of all other sources train or validate,
    their test images train. Patients of the source who are also in another take part in the test alone."""
    images_per_class: int | None = Field(default=None, ge=1)
    """Keep at most this many training images per task and grade, in every stage (SALL, Table IX)."""
    masks: Fraction = 1.0
    """Fraction of the training images' lesion masks that is used (DeepMT-DR, section V-D)."""

    @model_validator(mode="after")
    def _fold_exists(self) -> "DataConfig":
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold must be below folds ({self.folds}), got {self.fold}")
        return self

    @model_validator(mode="after")
    def _one_test(self) -> "DataConfig":
        if self.hold_out is not None and self.folds is not None:
            raise ValueError("hold_out and folds both name the test split, set one of them to null")
        return self


class AugmentConfig(Section):
    """Geometry drawn per training sample (SALL, section IV-A)."""

    scale: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Scale factor is uniform in 1 +- this."""
    rotate90: bool = True
    """Rotate by a random multiple of 90 degrees."""
    flip: bool = True
    """Flip horizontally and vertically, each with probability 1/2."""
    skew: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Shear along x and along y is uniform in +- this."""


class OptimConfig(Section):
    """The optimiser and its learning rate."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """adam, adamw or sgd."""
    lr: float = Field(default=1e-5, gt=0.0)
    """Peak learning rate."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Adam's decay rates; the first is SGD's momentum."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """L2 penalty; decoupled in AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Cosine falls to 0 over train.epochs."""
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    """Linear rise from 0, in epochs."""


class TrainConfig(Section):
    """The training loop."""

    epochs: int = Field(default=32, ge=1)
    """Passes over the training images at most."""
    global_batch_size: int = Field(default=32, ge=1)
    """Images per optimiser step over all ranks."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per optimiser step on each rank."""
    patience: int | None = Field(default=10, ge=1)
    """Stop after this many epochs without a better validation loss; null: never."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` is bf16 autocast on GPUs that have it, else fp32."""
    clip_norm: float | None = Field(default=None, gt=0.0)
    """Clip the gradient's global norm."""
    batch_norm: Literal["local", "sync"] = "local"
    """``local``: each rank normalises its own share and rank 0's running statistics are kept;
    ``sync``: statistics over all ranks (GPUs only; DeepMT-DR without a map)."""
    batch_norm_momentum: float | None = Field(default=None, gt=0.0, le=1.0)
    """Weight of the newest batch in the running statistics; null: the backbone's own. The 0.01 of MobileNet and
    EfficientNet lags by a hundred steps, too many for a short training from scratch."""
    channels_last: bool = True
    """Keep images and weights with the channels innermost in memory, which convolutions prefer."""
    compile: bool = False
    """torch.compile the network, or those of its parts that it can take."""
    recompute: bool = False
    """Compute activations once more in the backward pass instead of keeping them, block by block in the same parts: for
    batches that do not fit the memory otherwise, for about a third more time."""
    deterministic: bool = True
    """Use deterministic kernels only."""

    @model_validator(mode="after")
    def _compiled_or_recomputed(self) -> "TrainConfig":
        if self.compile and self.recompute:
            raise ValueError("compile decides by itself what to compute again; set compile=false or recompute=false")
        return self


class EvaluateConfig(Section):
    """What is computed from the prediction table."""

    bootstrap: int = Field(default=1000, ge=0)
    """Resamples of patients for the intervals; 0: no intervals."""
    level: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Coverage of the intervals."""
    bins: int = Field(default=15, ge=2)
    """Bins of calibration error and reliability diagrams."""
    coverage: float = Field(default=0.9, gt=0.5, lt=1.0)
    """Coverage of the conformal prediction sets in the bundle."""


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    """Log the run, and register its bundle."""
    uri: str | None = None
    """Tracking server; null: MLFLOW_TRACKING_URI, else an sqlite file in the storage folder's .mlflow."""
    experiment: str = "retina_ray"
    """MLflow experiment."""
    model_name: str = "retina_ray"
    """Registered model that the bundle becomes a version of."""


class RunConfig(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Folder of the run below runtime.storage."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of initial weights, order, augmentation, dropout and every random choice of images."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    method: MethodConfig = SallConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == "artifacts":
            raise ValueError("this folder holds the stages' artifacts; choose another name")
        return name

    @model_validator(mode="after")
    def _batch_divides(self) -> "RunConfig":
        shares = max(1, self.runtime.most_workers) * self.train.accumulate
        if not isinstance(self.runtime.workers, int):
            if self.train.global_batch_size < shares:
                raise ValueError(
                    f"train.global_batch_size ({self.train.global_batch_size}) must be at least the most "
                    f"runtime.workers x train.accumulate ({shares})"
                )
            return self
        if self.train.global_batch_size % shares:
            raise ValueError(
                f"train.global_batch_size ({self.train.global_batch_size}) must be a multiple of "
                f"runtime.workers x train.accumulate ({shares})"
            )
        return self

    @model_validator(mode="after")
    def _statistics_have_a_second_derivative(self) -> "RunConfig":
        # PyTorch cannot differentiate the backward pass of synchronised batch normalisation.
        maps = isinstance(self.method, DeepMTConfig) and self.method.evidence.map != "none"
        if maps and self.train.batch_norm == "sync":
            raise ValueError(
                "train.batch_norm = sync does not go with the gradients of maps in the loss; "
                "set train.batch_norm=local, or method.evidence.map=none"
            )
        return self


def to_yaml(config: RunConfig) -> str:
    """Return the whole tree as YAML, in the order of its definition."""
    return yaml_dialect.dump(config.model_dump(mode="json"))


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping, as read from YAML.

    Raises:
        ConfigError: a key is unknown (the nearest valid one is named) or a value does not fit.
    """
    try:
        return RunConfig.model_validate(_tuples(values), strict=True)
    except ValidationError as error:
        raise _explain(error, values) from None


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML configuration as a nested mapping.

    Raises:
        ConfigError: the file is missing, is no YAML or is not a mapping.
    """
    values = read_yaml(path, "the configuration file")
    if not isinstance(values, dict):
        raise ConfigError(
            "not a configuration", str(path), "write a mapping of sections, see `retina-ray recipes show`"
        )
    return values


def read_yaml(path: str | Path, what: str) -> Any:
    """Return what a YAML file of the user's holds.

    Args:
        path: of the file.
        what: the file is, for the error text.

    Raises:
        ConfigError: the file is missing or is no YAML.
    """
    try:
        return yaml_dialect.load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what}", str(path), f"check the path ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("not a YAML file", str(path), f"mend it ({' '.join(str(error).split())})") from None


def override(config: RunConfig, assignments: Iterable[str] | Mapping[str, Any]) -> RunConfig:
    """Return the configuration with values replaced.

    Args:
        config: the base.
        assignments: ``dotted.path=value`` strings whose values are YAML; or a mapping of dotted path to value; or a
            nested mapping, as read from a YAML file.

    Raises:
        ConfigError: a path is unknown or a value does not fit.
    """
    parts = [assignments] if isinstance(assignments, Mapping) else [_parse(text) for text in assignments]
    pairs = [pair for part in parts for pair in _flatten(config, part)]
    values = config.model_dump(mode="json")
    for path, value in pairs:
        _assign(config, values, path, value)
    return from_mapping(values)


def dotted_paths(section: Section, prefix: str = "") -> list[str]:
    """Return every path below a section that `override` accepts, except the keys of free mappings."""
    paths: list[str] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        paths += dotted_paths(value, f"{prefix}{name}.") if isinstance(value, Section) else [prefix + name]
    return paths


def value_at(config: RunConfig, path: str) -> Any:
    """Return the section or value that a dotted path leads to, or None."""
    node: Any = config
    for part in path.split("."):
        known = isinstance(node, Section) and part in type(node).model_fields
        node = getattr(node, part) if known else node.get(part) if isinstance(node, dict) else None
    return node


def _parse(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError("not an override", text, "write it as path=value, for example optim.lr=1e-4")
    try:
        return {path: yaml_dialect.load(value)}
    except yaml.YAMLError:
        raise ConfigError("the value is not YAML", text, "quote it") from None


def _flatten(config: RunConfig, values: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a mapping of (dotted or nested) keys as pairs of dotted path and value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if not isinstance(key, str):  # YAML reads the keys on, yes and 1 as something else
            raise _unknown(config, f"{prefix}{key}")
        path = prefix + key
        if isinstance(value, Mapping) and isinstance(value_at(config, path), Section):
            pairs += _flatten(config, value, f"{path}.")
        else:
            pairs.append((path, value))
    return pairs


def _assign(config: RunConfig, values: dict[str, Any], path: str, value: Any) -> None:
    """Put a value into the dumped tree ``values`` of ``config``, which tells sections from free mappings."""
    *parents, leaf = path.split(".")
    parent = value_at(config, ".".join(parents)) if parents else config
    if isinstance(value_at(config, path), Section):
        first = next(iter(type(value_at(config, path)).model_fields))
        raise ConfigError("this is a section, not a value", path, f"set one of its keys, such as {path}.{first}")
    is_key = isinstance(parent, Section) and leaf in type(parent).model_fields
    if not is_key and not (isinstance(parent, dict) and leaf):
        raise _unknown(config, path)
    for part in parents:
        values = values[part]
    values[leaf] = value


def _unknown(config: RunConfig, path: str) -> ConfigError:
    near = difflib.get_close_matches(path, dotted_paths(config), n=1, cutoff=0.0)
    fix = f"did you mean {near[0]}? `retina-ray recipes show` lists all"
    return ConfigError("unknown configuration key", path, fix)


def _path(location: tuple[int | str, ...]) -> str:
    """Return pydantic's location as a dotted path, without the branches of unions that it goes through."""
    head, rest = location[:1], location[1:]
    if head == ("method",):  # the tag of the union follows
        rest = rest[1:]
    return ".".join(str(part) for part in (*head, *rest) if part not in ("bool", "int", "constrained-int", "[key]"))


def _method_of(values: Mapping[str, Any]) -> SallConfig | DeepMTConfig:
    """Return the defaults of the method that a configuration means."""
    section = values.get("method")
    name = section.get("name") if isinstance(section, Mapping) else None
    return DeepMTConfig() if name == "deepmt" else SallConfig()


def _tuples(values: Any) -> Any:
    """Turn the lists of YAML into the tuples that the frozen tree holds."""
    if isinstance(values, Mapping):
        return {key: _tuples(value) for key, value in values.items()}
    return tuple(_tuples(value) for value in values) if isinstance(values, list) else values


def _explain(error: ValidationError, values: Mapping[str, Any]) -> ConfigError:
    """Turn pydantic's first complaint into one line."""
    first = error.errors(include_url=False)[0]
    path = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(RunConfig(name="any", method=_method_of(values)), path)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return ConfigError("unknown method", first["input"].get("name"), "set method.name to sall or deepmt")
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    if first["type"] == "missing":
        return ConfigError("missing configuration key", path, "add it")
    value = first["input"]
    shown = f"{path} = {value!r}" if path and not isinstance(value, (dict, BaseModel)) else path or "the configuration"
    return ConfigError("bad configuration value", shown, message[:1].lower() + message[1:])
