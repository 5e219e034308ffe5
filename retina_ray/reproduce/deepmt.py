"""DeepMT-DR's tables and figures (Wang et al., sections III and V), over the recipe `deepmt_dr` and its ablations.

Other papers' methods in them are left out where no library has their networks; their printed figures stay beside ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from retina_ray.data.schema import LESIONS
from retina_ray.recipes_deepmt import ALONE, VARIANTS
from retina_ray.reproduce.experiment import Arm, Axes, Build, Column, Drawing, Experiment, Printed, Row, Scope

_NO_LIBRARY = "another paper's method, which no library has"
_CONFERENCE = "the same method's conference version, whose differences are not published in detail"

_GRADING = {"accuracy": "Accuracy", "precision_weighted": "Precision", "f1_weighted": "F1", "kappa": "Kappa"}

_ONE_EPOCH = {"method.stages.grading.epochs": 1, "method.stages.joint.epochs": 1}
"""For arms that are measured after the first stage: the later ones are only gone through."""

_NO_SUPER_RESOLUTION = {"method.super_resolution.mode": "none", "method.evidence.map": "none"}

_TABLE_1: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ResNet-18": ((73.2, 0.9, 77.3, 0.6, 72.5, 0.8, 70.8, 0.7), (78.6, 1.3, 79.2, 0.7, 78.3, 0.6, 77.6, 0.4)),
    "Inception-v3": ((74.4, 0.5, 78.9, 0.2, 75.5, 0.6, 71.9, 0.7), (79.2, 0.6, 79.5, 0.3, 78.7, 0.5, 77.7, 0.9)),
    "DenseNet-121": ((74.0, 0.7, 79.2, 0.3, 73.0, 0.4, 68.9, 0.6), (80.6, 0.8, 80.8, 0.6, 79.8, 1.3, 79.5, 0.4)),
    "M-Net": ((78.9, 0.5, 80.1, 0.8, 78.4, 0.3, 74.2, 0.5), (81.8, 0.6, 82.7, 0.4, 82.5, 0.6, 81.3, 0.4)),
    "CKML": ((77.5, 0.6, 80.0, 0.7, 77.0, 0.6, 73.3, 0.4), (81.1, 0.6, 81.3, 0.4, 80.7, 0.5, 80.1, 0.5)),
    "VNXK": ((78.3, 0.8, 81.6, 1.2, 78.2, 0.7, 74.7, 0.6), (81.8, 0.7, 82.1, 0.5, 80.8, 0.6, 80.6, 0.3)),
    "MMCNN": ((79.5, 0.3, 81.6, 0.8, 79.4, 0.4, 75.7, 0.8), (83.1, 0.6, 83.7, 0.2, 82.9, 0.7, 82.6, 0.8)),
    "Adly et al.": ((78.6, 0.5, 81.2, 0.7, 78.3, 1.1, 73.9, 0.4), (81.3, 0.6, 82.3, 0.4, 81.6, 0.4, 80.9, 0.5)),
    "Lin et al.": ((79.2, 0.4, 80.6, 0.6, 78.7, 1.0, 74.9, 0.3), (82.8, 0.5, 83.3, 0.2, 82.2, 0.5, 81.8, 0.7)),
    "Wang et al.": ((82.5, 0.8, 82.2, 0.5, 81.8, 0.6, 77.8, 0.8), (85.7, 0.7, 86.0, 0.8, 83.9, 0.5, 83.7, 0.6)),
    "DeepMT-DR": ((83.6, 0.5, 83.1, 0.3, 83.0, 0.4, 80.2, 0.7), (86.9, 0.5, 87.1, 0.3, 85.7, 0.6, 85.2, 0.2)),
}
"""Accuracy, precision, F1 and kappa on DDR and on EyePACS, each with its standard deviation."""

_TABLE_2 = {
    "ResNet-18": 77.6,
    "GoogLeNet": 78.2,
    "DenseNet-121": 77.4,
    "M-Net": 78.8,
    "CKML": 78.6,
    "VNXK": 79.3,
    "MMCNN": 80.8,
    "Adly et al.": 78.5,
    "Lin et al.": 79.6,
    "DeepMT-DR": 87.6,
}

_TABLE_3: dict[str, tuple[float, ...]] = {
    "U-Net": (95.7, 45.5, 95.3, 49.4, 96.5, 65.5, 97.2, 58.4, 96.2, 54.7),
    "DRU-Net": (98.1, 49.3, 95.8, 50.4, 98.1, 67.0, 98.5, 62.8, 97.6, 57.4),
    "HGN": (97.4, 48.1, 96.1, 51.8, 98.4, 67.7, 98.6, 63.1, 97.2, 57.7),
    "CE-Net": (97.6, 48.5, 96.4, 52.3, 98.2, 67.6, 99.4, 65.2, 97.9, 58.4),
    "Wang et al.": (98.7, 50.1, 97.1, 55.4, 99.0, 71.8, 99.2, 64.7, 98.5, 60.5),
    "DeepMT-DR": (98.8, 50.1, 97.3, 55.5, 99.0, 72.0, 99.2, 65.0, 98.6, 60.6),
}
"""AUC and AP of each lesion in the order of `LESIONS`, and of their mean."""

_TABLE_4 = {
    "SRCNN": ((36.8, 0.4), (0.772, 0.03)),
    "Mahapatra et al.": ((38.1, 0.6), (0.836, 0.08)),
    "MDRN": ((38.9, 0.6), (0.856, 0.10)),
    "Wang et al.": ((39.7, 0.5), (0.883, 0.06)),
    "DeepMT-DR": ((39.9, 0.3), (0.892, 0.08)),
}

_TABLE_5 = {"W/O vis": 81.7, "GBP": 82.0, "Grad-CAM": 82.2, "SmoothGrad": 82.3, "GMSV": 83.6}

_TABLE_6 = {"512": (84.3, 82.1, 98.9, 61.1, 45.2, 0.915), "256": (83.6, 80.2, 98.6, 60.6, 39.9, 0.892)}

_FIGURE_3 = {("DenseNet-121", 0): 69.3, ("DenseNet-121", 3): 78.3}
"""What section III prints of Fig. 3a, by network and number of the resolution."""

_NETWORKS = {
    "ResNet-18": "resnet18",
    "Inception-v3": "inception_v3",
    "GoogLeNet": "googlenet",
    "DenseNet-121": "densenet121",
    "VGG-16": "vgg16",
    "SqueezeNet": "squeezenet1_1",
}
"""Names in torchvision."""


def table_1(scope: Scope) -> Experiment:
    """Return Table I: grading, against networks alone on bicubic enlargement."""
    columns = _grading(scope)
    number = 1 if scope.sources == ("eyepacs",) else 0
    rows: list[Row] = []
    for name, values in _TABLE_1.items():
        pairs = list(zip(values[number][::2], values[number][1::2], strict=True))
        printed = {column.label: Printed(*pair) for column, pair in zip(columns, pairs, strict=True)}
        rows.append(_row("Method", name, printed, against=0))
    notes = (
        "Precision and F1 are means weighted by the grades' numbers, as in the authors' code; the paper does not say.",
        "The networks alone see the enlarged image as DeepMT-DR's grader does, by bicubic interpolation; the paper's "
        "saw one that another super-resolution method had made.",
        f"The paper's figures are those on {('DDR', 'EyePACS')[number]}.",
    )
    return _experiment("deepmt-table1", "DeepMT-DR, Table I: grading", _arms(rows), rows, columns, notes=notes)


def table_2(scope: Scope) -> Experiment:
    """Return Table II: disease or none in photographs of low resolution, which are another data set."""
    (task,) = scope.tasks[:1]
    columns = (Column("Accuracy", "accuracy", task, images="external"),)
    rows = [_row("Method", name, {"Accuracy": Printed(value)}, against=0) for name, value in _TABLE_2.items()]
    arms = [Arm(arm.name, arm.overrides, external=True) for arm in _arms(rows)]
    notes = ("The networks of Table I on the external data set, graded 0 against any other grade.",)
    title = "DeepMT-DR, Table II: photographs of low resolution"
    return _experiment("deepmt-table2", title, arms, rows, columns, notes=notes)


def table_3(scope: Scope) -> Experiment:
    """Return Table III: lesion segmentation."""
    columns = []
    for region in (*LESIONS, "mean"):
        columns += [Column(f"{region} AUC", f"image_auc_{region}", stage="joint")]
        columns += [Column(f"{region} AP", f"image_ap_{region}", stage="joint")]
    printed = {name: _printed(columns, values) for name, values in _TABLE_3.items()}
    columns += [Column(f"{region} AP, pooled", f"ap_{region}", stage="joint") for region in (*LESIONS, "mean")]
    rows = [_row("Method", name, values) for name, values in printed.items()]
    notes = (
        "AUC and AP are means over the images that show the lesion, as in the authors' code; pooled AP is over all "
        "pixels, with those of images that do not.",
    )
    title = "DeepMT-DR, Table III: lesion segmentation"
    return _experiment("deepmt-table3", title, _arms(rows), rows, columns, notes=notes)


def table_4(scope: Scope) -> Experiment:
    """Return Table IV: super-resolution."""
    columns = (
        Column("PSNR", "psnr", stage="joint", unit="dB"),
        Column("SSIM", "ssim", stage="joint", unit=""),
        Column("PSNR, bicubic", "psnr_bicubic", stage="joint", unit="dB"),
        Column("SSIM, bicubic", "ssim_bicubic", stage="joint", unit=""),
    )
    rows = [
        _row("Method", name, {"PSNR": Printed(*psnr), "SSIM": Printed(*ssim)})
        for name, (psnr, ssim) in _TABLE_4.items()
    ]
    return _experiment("deepmt-table4", "DeepMT-DR, Table IV: super-resolution", _arms(rows), rows, columns)


def table_5(scope: Scope) -> Experiment:
    """Return Table V: what makes the evidence maps."""
    variants = {"W/O vis": "map_none", "GBP": "map_gbp", "Grad-CAM": "map_grad_cam", "SmoothGrad": "map_smooth_grad"}
    columns = _grading(scope)
    arms = [*(_variant(variant) for variant in variants.values()), _ours()]
    rows = [
        Row({"Map": name}, arm.name, against=0 if number else None, printed={"Accuracy": Printed(value)})
        for number, (arm, (name, value)) in enumerate(zip(arms, _TABLE_5.items(), strict=True))
    ]
    return _experiment("deepmt-table5", "DeepMT-DR, Table V: evidence maps", arms, rows, columns)


def table_6(scope: Scope) -> Experiment:
    """Return Table VI: the input's resolution."""
    columns = (
        *(column for column in _grading(scope) if column.metric in ("accuracy", "kappa")),
        Column("AUC", "image_auc_mean", stage="joint"),
        Column("AP", "image_ap_mean", stage="joint"),
        Column("PSNR", "psnr", stage="joint", unit="dB"),
        Column("SSIM", "ssim", stage="joint", unit=""),
    )
    rows: list[Row] = []
    for arm, values, shrunk in zip((_variant("input_512"), _ours()), _TABLE_6.values(), (2, 4), strict=True):
        pixels = scope.resolutions[-1] // shrunk
        cells = {"Input (px)": str(pixels)}
        rows.append(Row(cells, arm.name, against=None if rows else 1, printed=_printed(columns, values)))
    title = "DeepMT-DR, Table VI: input resolution"
    return _experiment("deepmt-table6", title, [_variant("input_512"), _ours()], rows, columns)


def figure_3(scope: Scope) -> Experiment:
    """Return Fig. 3: grading (a) and segmentation (b) by resolution."""
    grade = next(column for column in _grading(scope) if column.metric == "accuracy")
    segment = Column("mAP", "image_ap_mean", stage="restoration")
    arms, rows = [], []
    for name in ("VGG-16", "SqueezeNet", "ResNet-18", "DenseNet-121"):
        for number, pixels in enumerate(scope.resolutions):
            size = {"method.scale": 1, "data.image_size": pixels, "method.grading.backbone": _NETWORKS[name]}
            arms.append(Arm(f"{_NETWORKS[name]}-at-{pixels}", {**ALONE, **size}))
            known = _FIGURE_3.get((name, number))
            printed = {} if known is None else {grade.label: Printed(known)}
            cells = {"Network": name, "Resolution (px)": str(pixels)}
            rows.append(Row(cells, arms[-1].name, columns=(grade.label,), printed=printed))
    for scale in (8, 4, 2, 1):
        pixels = scope.resolutions[-1] // scale
        arms.append(Arm(f"segmentation-at-{pixels}", {**_NO_SUPER_RESOLUTION, **_ONE_EPOCH, "method.scale": scale}))
        cells = {"Network": "DeepMT-DR's segmentation net", "Resolution (px)": str(pixels)}
        rows.append(Row(cells, arms[-1].name, columns=(segment.label,)))
    charts = tuple(
        Axes("curves", ((column.label,),), x="Resolution (px)", series="Network", name=name)
        for column, name in ((grade, "a"), (segment, "b"))
    )
    notes = (
        "Panel b: our segmentation net on bicubic enlargement; the curves of other papers' segmentation networks are "
        "left out, as no library has them.",
    )
    title = "DeepMT-DR, Fig. 3: grading and segmentation by resolution"
    return _experiment("deepmt-figure3", title, arms, rows, (grade, segment), charts=charts, notes=notes)


def figure_4(scope: Scope) -> Experiment:
    """Return Fig. 4: tasks together and apart (a, b), and where Grad-CAM looks (c)."""
    grade = next(column for column in _grading(scope) if column.metric == "accuracy")
    segment = Column("mAP", "image_ap_mean", stage="restoration")
    settings: dict[str, tuple[Column, dict[str, Any]]] = {
        "grading, joint": (grade, VARIANTS["isr_and_grading"][1]),
        "grading, independent": (grade, VARIANTS["isr_then_grading"][1]),
        "grading, bicubic": (grade, ALONE),
        "segmentation, joint": (segment, _ONE_EPOCH),
        "segmentation, independent": (segment, {**VARIANTS["isr_then_segmentation"][1], **_ONE_EPOCH}),
        "segmentation, bicubic": (segment, {**_NO_SUPER_RESOLUTION, **_ONE_EPOCH}),
    }
    arms, rows = [], []
    for setting, (column, overrides) in settings.items():
        for scale in (2, 4, 8):
            arms.append(Arm(f"{setting.replace(', ', '-')}-x{scale}", {**overrides, "method.scale": scale}))
            rows.append(Row({"Setting": setting, "Scale": str(scale)}, arms[-1].name, columns=(column.label,)))
    evidence = _evidence_columns()
    arms.append(_grad_cam(scope))
    labels = tuple(column.label for column in evidence)
    printed = {"AUC any lesion": Printed(87), "AUC background": Printed(13)}
    rows.append(Row({"Setting": "ResNet-18, Grad-CAM", "Scale": "1"}, arms[-1].name, columns=labels, printed=printed))
    charts = (
        Axes("curves", ((grade.label,),), x="Scale", series="Setting", name="a"),
        Axes("curves", ((segment.label,),), x="Scale", series="Setting", name="b"),
        Axes("columns", (labels,), series="Setting", name="c"),
    )
    notes = (
        "The super-resolution net is DeepMT-DR's own: the paper's adversarial one (Mahapatra et al.) is in no library, "
        "and its curves are left out.",
        "Segmentation is measured after the first stage; the later ones, one epoch each, do not change it.",
    )
    title = "DeepMT-DR, Fig. 4: tasks together and apart"
    return _experiment("deepmt-figure4", title, arms, rows, (grade, segment, *evidence), charts=charts, notes=notes)


def figure_5(scope: Scope) -> Experiment:
    """Return Fig. 5: true lesions beside what ResNet-18 looks at."""
    arm, columns = _grad_cam(scope), _evidence_columns()
    row = Row({"Setting": "ResNet-18, Grad-CAM"}, arm.name)
    title = "DeepMT-DR, Fig. 5: lesions and Grad-CAM of ResNet-18"
    return _experiment("deepmt-figure5", title, [arm], [row], columns, drawing=Drawing("lesions", arm.name))


def figure_8(scope: Scope) -> Experiment:
    """Return Fig. 8: details of restored images."""
    return _pictured(table_4(scope), "deepmt-figure8", "DeepMT-DR, Fig. 8: restored details", "restoration")


def figure_9(scope: Scope) -> Experiment:
    """Return Fig. 9: lesions found."""
    return _pictured(table_3(scope), "deepmt-figure9", "DeepMT-DR, Fig. 9: lesions found", "lesions")


def figure_10(scope: Scope) -> Experiment:
    """Return Fig. 10: without super-resolution (a), segmentation (b) and task-aware losses (c)."""
    columns = _grading(scope)
    panels = {
        "a": {"W/O ISR": "without_isr", "Independent ISR": "independent_isr"},
        "b": {"W/O segmentation": "without_segmentation", "Independent segmentation": "independent_segmentation"},
        "c": {"W/O SAL and CAL": "without_sal_cal", "W/O SAL": "without_sal", "W/O CAL": "without_cal"},
    }
    ours = _ours()
    arms = [ours]
    rows = [Row({"Panel": "all", "Setting": "DeepMT-DR"}, ours.name, printed={"Accuracy": Printed(83.6)})]
    for panel, variants in panels.items():
        for name, variant in variants.items():
            arms.append(_variant(variant))
            rows.append(Row({"Panel": panel, "Setting": name}, arms[-1].name, against=0))
    charts = (Axes("bars", tuple((column.label,) for column in columns), x="Setting"),)
    title = "DeepMT-DR, Fig. 10: what each part is worth"
    return _experiment("deepmt-figure10", title, arms, rows, columns, charts=charts)


EXPERIMENTS: dict[str, Build] = {
    "deepmt-table1": table_1,
    "deepmt-table2": table_2,
    "deepmt-table3": table_3,
    "deepmt-table4": table_4,
    "deepmt-table5": table_5,
    "deepmt-table6": table_6,
    "deepmt-figure3": figure_3,
    "deepmt-figure4": figure_4,
    "deepmt-figure5": figure_5,
    "deepmt-figure8": figure_8,
    "deepmt-figure9": figure_9,
    "deepmt-figure10": figure_10,
}


def _experiment(
    name: str, title: str, arms: Sequence[Arm], rows: Sequence[Row], columns: Sequence[Column], **more: Any
) -> Experiment:
    return Experiment(name, title, "deepmt", tuple(arms), tuple(rows), tuple(columns), **more)


def _ours() -> Arm:
    return Arm("deepmt-dr")


def _variant(name: str) -> Arm:
    return Arm(name.replace("_", "-"), VARIANTS[name][1])


def _arms(rows: Sequence[Row]) -> list[Arm]:
    """Return DeepMT-DR and the networks alone that rows of `_row` name."""
    networks = {_NETWORKS[name]: name for row in rows for name in row.cells.values() if name in _NETWORKS}
    alone = [Arm(network, {**ALONE, "method.grading.backbone": network}) for network in networks]
    return [*alone, _ours()]


def _row(heading: str, name: str, printed: Mapping[str, Printed], *, against: int | None = None) -> Row:
    """Return the row of a method: ours, a network alone, or one that is left out."""
    cells = {heading: name}
    if name == "DeepMT-DR":
        return Row(cells, _ours().name, against=against, printed=printed)
    if name in _NETWORKS:
        return Row(cells, _NETWORKS[name], printed=printed)
    return Row(cells, left_out=_CONFERENCE if name == "Wang et al." else _NO_LIBRARY, printed=printed)


def _grading(scope: Scope) -> tuple[Column, ...]:
    (task,) = scope.tasks[:1]
    return tuple(Column(label, metric, task) for metric, label in _GRADING.items())


def _evidence_columns() -> tuple[Column, ...]:
    regions = {**dict.fromkeys(LESIONS), "lesions": "any lesion", "background": "background"}
    return tuple(
        Column(f"AUC {label or region}", f"evidence_auc_{region}", stage="joint") for region, label in regions.items()
    )


def _grad_cam(scope: Scope) -> Arm:
    """Return ResNet-18 on high-resolution images, with maps by Grad-CAM that no loss sees."""
    return Arm(
        "resnet18-grad-cam",
        {
            **ALONE,
            "method.scale": 1,
            "method.evidence.map": "grad_cam",
            "method.stages.joint.classification_aware": 0.0,
            "data.image_size": scope.resolutions[-1],
        },
    )


def _pictured(table: Experiment, name: str, title: str, kind: Any) -> Experiment:
    """Return our row of a table, with images."""
    rows = [row for row in table.rows if row.arm == _ours().name]
    notes = ("The other methods' pictures are left out: no library has them.",)
    drawing = Drawing(kind, _ours().name)
    return _experiment(name, title, [_ours()], rows, table.columns, drawing=drawing, notes=notes)


def _printed(columns: Sequence[Column], values: Sequence[float]) -> dict[str, Printed]:
    return {column.label: Printed(value) for column, value in zip(columns, values, strict=True)}
