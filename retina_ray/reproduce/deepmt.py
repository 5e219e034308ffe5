"""DeepMT-DR's tables and figures (Wang et al., sections III and V), over the recipe `deepmt_dr` and its ablations.

Other papers' methods in them are not run, but for the classifiers that torchvision has; their printed figures stay
beside ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from retina_ray.data.schema import LESIONS
from retina_ray.recipes_deepmt import ALONE, VARIANTS
from retina_ray.reproduce import deepmt_printed
from retina_ray.reproduce.experiment import Arm, Axes, Build, Column, Drawing, Experiment, Printed, Row, Scope

_OTHERS = "another paper's method, as that paper trained it"
_CONFERENCE = "the same method's conference version, whose differences are not published in detail"

_GRADING = {"accuracy": "Accuracy", "precision_weighted": "Precision", "f1_weighted": "F1", "kappa": "Kappa"}

_ONE_EPOCH = {"method.stages.grading.epochs": 1, "method.stages.joint.epochs": 1}
"""For arms that are measured after the first stage: the later ones are only gone through."""

_NO_SUPER_RESOLUTION = {"method.super_resolution.mode": "none", "method.evidence.map": "none"}

_PUBLIC = ("ddr", "eyepacs")
"""Data sets that the paper's figures are on, by their names as sources; all but Table I are on the first alone."""

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
    number = 1 if tuple(scope.sources) == (_PUBLIC[1],) else 0
    rows: list[Row] = []
    for name, values in deepmt_printed.TABLE_1.items():
        pairs = list(zip(values[number][::2], values[number][1::2], strict=True))
        printed = {column.label: Printed(*pair) for column, pair in zip(columns, pairs, strict=True)}
        rows.append(_row("Method", name, printed, against=0))
    notes = (
        "Precision and F1 are means weighted by the grades' numbers, as in the authors' code; the paper does not say.",
        "The networks alone see the enlarged image as DeepMT-DR's grader does, by bicubic interpolation; the paper's "
        "saw one that another super-resolution method had made.",
        f"The paper's figures are those on {('DDR', 'EyePACS')[number]}.",
    )
    title, printed_on = "DeepMT-DR, Table I: grading", _PUBLIC[number]
    return _experiment("deepmt-table1", title, _arms(rows), rows, columns, notes=notes, printed_on=printed_on)


def table_2(scope: Scope) -> Experiment:
    """Return Table II: disease or none in photographs of low resolution, which are another data set."""
    (task,) = scope.tasks[:1]
    columns = (Column("Accuracy", "accuracy", task, images="external"),)
    rows = [
        _row("Method", name, {"Accuracy": Printed(value)}, against=0) for name, value in deepmt_printed.TABLE_2.items()
    ]
    arms = [Arm(arm.name, arm.overrides, external=True) for arm in _arms(rows)]
    notes = (
        "Every network is trained on the data set and grades all of the external one: an image shows disease where "
        "grade 0 has less than half of the probability. An external set may grade no more than that, by 0 and 1.",
        "The paper's photographs are the 898 of Real-LR, of which a part is a hospital's.",
    )
    title = "DeepMT-DR, Table II: photographs of low resolution"
    return _experiment("deepmt-table2", title, arms, rows, columns, notes=notes, printed_on="")


def table_3(scope: Scope) -> Experiment:
    """Return Table III: lesion segmentation."""
    columns = []
    for region in (*LESIONS, "mean"):
        columns += [Column(f"{region} AUC", f"image_auc_{region}", stage="joint")]
        columns += [Column(f"{region} AP", f"image_ap_{region}", stage="joint")]
    printed = {
        name: {
            column.label: Printed(value, spread)
            for column, value, spread in zip(columns, values, (*spreads, None, None), strict=True)
        }
        for name, (values, spreads) in deepmt_printed.TABLE_3.items()
    }
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
        for name, (psnr, ssim) in deepmt_printed.TABLE_4.items()
    ]
    return _experiment("deepmt-table4", "DeepMT-DR, Table IV: super-resolution", _arms(rows), rows, columns)


def table_5(scope: Scope) -> Experiment:
    """Return Table V: what makes the evidence maps."""
    variants = {"W/O vis": "map_none", "GBP": "map_gbp", "Grad-CAM": "map_grad_cam", "SmoothGrad": "map_smooth_grad"}
    columns = _grading(scope)
    arms = [*(_variant(variant) for variant in variants.values()), _ours()]
    rows = [
        Row({"Map": name}, arm.name, against=0 if number else None, printed={"Accuracy": Printed(value)})
        for number, (arm, (name, value)) in enumerate(zip(arms, deepmt_printed.TABLE_5.items(), strict=True))
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
    for arm, values, shrunk in zip(
        (_variant("input_512"), _ours()), deepmt_printed.TABLE_6.values(), (2, 4), strict=True
    ):
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
            known = deepmt_printed.FIGURE_3.get((name, number))
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
        "left out.",
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
        "The super-resolution net is DeepMT-DR's own, and so is the segmentation net: the curves of the paper's "
        "adversarial super-resolver (Mahapatra et al.), which is in no library, and of its U-Net are left out.",
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
    on_ddr = deepmt_printed.TABLE_1["DeepMT-DR"][0][::2]
    rows = [Row({"Panel": "all", "Setting": "DeepMT-DR"}, ours.name, printed=_printed(columns, on_ddr))]
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
    name: str,
    title: str,
    arms: Sequence[Arm],
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    printed_on: str = _PUBLIC[0],
    **more: Any,
) -> Experiment:
    return Experiment(name, title, "deepmt", tuple(arms), tuple(rows), tuple(columns), printed_on=printed_on, **more)


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
    return Row(cells, left_out=_CONFERENCE if name == "Wang et al." else _OTHERS, printed=printed)


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
    notes = ("The other methods' pictures are left out, as in the table.",)
    drawing = Drawing(kind, _ours().name)
    return _experiment(name, title, [_ours()], rows, table.columns, drawing=drawing, notes=notes)


def _printed(columns: Sequence[Column], values: Sequence[float]) -> dict[str, Printed]:
    return {column.label: Printed(value) for column, value in zip(columns, values, strict=True)}
