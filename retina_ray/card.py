"""The model card: a bundle's manifest in words, as Markdown."""

from collections.abc import Iterator

from retina_ray.bundle_manifest import BundleManifest, Number, TaskMetrics

_SHOWN = {
    "accuracy": "accuracy",
    "kappa_quadratic": "quadratic kappa",
    "auroc": "AUROC",
    "f1_macro": "macro F1",
    "ece": "expected calibration error",
}


def model_card(manifest: BundleManifest) -> str:
    """Return the card of a bundle; it states nothing that the manifest does not hold."""
    sections = (_what_it_is, _use, _data, _metrics, _calibration, _training)
    return "\n\n".join("\n".join(section(manifest)) for section in sections) + "\n"


def _what_it_is(manifest: BundleManifest) -> Iterator[str]:
    size = manifest.preprocessing.image_size
    yield f"# {manifest.name}"
    yield ""
    networks = "one network" if len(manifest.networks) == 1 else f"{len(manifest.networks)} networks"
    yield (
        f"Grades colour fundus photographs with the method `{manifest.method}`: {networks}, input {size} x {size} "
        f"pixels, cut around the fundus disc."
    )
    yield ""
    yield from _table(
        ["task", "grades, mildest first"], [[task.name, ", ".join(task.grades)] for task in manifest.tasks]
    )
    yield ""
    commit = f", commit {manifest.code.commit}" if manifest.code.commit else ""
    yield f"Made {manifest.created:%Y-%m-%d %H:%M} UTC by retina-ray {manifest.code.package}{commit}."


def _use(manifest: BundleManifest) -> Iterator[str]:
    yield "## Intended use and limits"
    yield ""
    yield "For research. It is not a medical device and must not decide about the care of a patient."
    yield (
        "It has seen the data set below and nothing else: other cameras, populations, diseases and photographs of poor "
        "quality are outside what its figures cover. Every photograph gets a grade, even of another disease."
    )
    yield "No licence is stated for the weights; the licences of the data and of pretrained weights may bind them."


def _data(manifest: BundleManifest) -> Iterator[str]:
    data = manifest.data
    yield "## Data"
    yield ""
    yield f"{data.source}. Fingerprint `{data.fingerprint}`; {data.training_images} images were trained on."
    yield ""
    rows = [
        [split, task.name, " / ".join(str(count) for count in data.counts[split][task.name])]
        for split in data.counts
        for task in manifest.tasks
        if task.name in data.counts[split]
    ]
    yield from _table(["split", "task", "images by grade"], rows)
    if manifest.config["data"]["folds"]:
        yield ""
        yield "The run used cross-validation folds in place of these splits."
    if (source := manifest.config["data"].get("hold_out")) is not None:
        yield ""
        yield f"In place of these splits, the source `{source}` was the test, and the others' test images trained."


def _metrics(manifest: BundleManifest) -> Iterator[str]:
    level = manifest.config["evaluate"]["level"]
    yield "## Results on the test split"
    yield ""
    yield f"In brackets: {level:.0%} intervals over patients."
    yield ""
    header = ["task", "images", *_SHOWN.values()]
    yield from _table(
        header,
        [
            [task, str(found.images), *(_figure(found, name) for name in _SHOWN)]
            for task, found in manifest.metrics.items()
        ],
    )
    yield ""
    marks = ", ".join(f"{task} `{found.test_fingerprint}`" for task, found in manifest.metrics.items())
    yield f"Fingerprints of the test images with their grades: {marks}."


def _calibration(manifest: BundleManifest) -> Iterator[str]:
    yield "## Calibration"
    yield ""
    yield (
        "Fitted on the validation split. Served probabilities are calibrated by the temperature; the prediction set "
        "is meant to hold the true grade with the stated coverage."
    )
    yield ""
    header = ["task", "temperature", "coverage", "coverage on test", "grades per set on test", "referable from"]
    grades = {task.name: task.grades for task in manifest.tasks}
    yield from _table(
        header,
        [
            [
                task,
                f"{fitted.temperature:.3f}",
                f"{fitted.coverage:.0%}",
                f"{manifest.metrics[task].set_coverage:.1%}",
                f"{manifest.metrics[task].set_size:.2f}",
                grades[task][fitted.referable_from],
            ]
            for task, fitted in manifest.calibration.items()
        ],
    )


def _training(manifest: BundleManifest) -> Iterator[str]:
    yield "## Training"
    yield ""
    rows = [["seed", str(manifest.config["seed"])]]
    for section in ("method", "data", "augment", "optim", "train"):
        rows += [[f"{section}.{key}", f"`{value}`"] for key, value in manifest.config[section].items()]
    yield from _table(["setting", "value"], rows)


def _figure(found: TaskMetrics, name: str) -> str:
    low, high = found.intervals.get(name, (None, None))
    interval = "" if low is None else f" [{_number(low)}, {_number(high)}]"
    return f"{_number(found.metrics.get(name))}{interval}"


def _number(value: Number) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
