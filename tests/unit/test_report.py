"""The report is one file that needs nothing else, shows the numbers, and survives hostile and missing input."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from retina_ray.metrics.comparison import paired_differences
from retina_ray.metrics.grading import METRICS
from retina_ray.metrics.summary import TaskSummary, summarise
from retina_ray.metrics.table import make_table
from retina_ray.report import figures, progress_figures, tables
from retina_ray.report.build import ReportData, write_report
from retina_ray.report.html import figure_uri

HOSTILE = "<script>alert('x')</script> & $\\frac{1}$ \"quoted\""
RESAMPLES = 30


def predictions(task: str, num_grades: int, *, model: str, skill: float, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    truth = np.arange(60) % num_grades
    powers = np.exp(rng.normal(size=(60, num_grades)) + skill * np.eye(num_grades)[truth])
    names = [f"{task}-{index}" for index in range(60)]
    return make_table(
        powers / powers.sum(axis=1, keepdims=True),
        truth=truth,
        image_ids=names,
        group_ids=names,
        sources=["synthetic"] * 60,
        splits=["test"] * 60,
        model=model,
        task=task,
    )


def report_data(**changes: Any) -> ReportData:
    table = pa.concat_tables(
        [
            predictions("dr", 5, model="single_task", skill=1.0, seed=0),
            predictions("dr", 5, model="sall", skill=2.5, seed=1),
            predictions("amd", 4, model="sall", skill=2.0, seed=2),
        ]
    )
    data = ReportData(
        title="sall-demo",
        config_yaml="method:\n  temperature: 3.0\n",
        summaries=summarise(table, split="test", resamples=RESAMPLES, seed=0),
        predictions=table,
        histories={
            "student": [
                {
                    "kind": "epoch",
                    "epoch": 1.0,
                    "train_dr": 1.2,
                    "validation_loss_dr": 1.3,
                    "validation_criterion": 1.3,
                },
                {"kind": "step", "step": 40, "train_dr": 9.0},
                {"kind": "epoch", "epoch": 2.0, "train_dr": 0.8, "validation_accuracy_dr": 0.7, "lr": 1e-5},
            ]
        },
        timings={"student": {"first_batch_s": 2.0, "compute_s": 61.5, "images_per_second": 800.0}},
        cam_panels=[
            figures.CamPanel(
                image=np.full((32, 32, 3), 90, dtype=np.uint8),
                heatmap=np.eye(4, dtype=np.float32),
                title="amd: CNV",
                caption="dr network says PDR",
            )
        ],
        soft_labels=[
            {"task": "dr", "temperature": 1.0, "mean_max": 0.7478, "mean_variance": 0.0960},
            {"task": "dr", "temperature": 3.0, "mean_max": 0.6915, "mean_variance": 0.0633},
        ],
        data_counts={"train": {"dr": [700, 50, 60, 40, 30], "amd": [500, 40, 30, 20]}},
        environment={"versions": {"torch": "2.15.0"}, "cpus": 16},
        notes=["One image was damaged."],
        resamples=RESAMPLES,
    )
    return dataclasses.replace(data, **changes)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    written = write_report(report_data(), folder / "report.html")
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return written.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects start tags with their attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_loads_nothing_from_outside(page: str) -> None:
    parsed = Tags(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.tags}
    addresses = [
        value for _, attrs in parsed.tags for name, value in attrs.items() if name in ("src", "href", "srcset")
    ]
    assert len(addresses) == 8  # 2 confusion, 2 reliability, soft labels, Grad-CAM, curves, timing
    assert all(address is not None and address.startswith("data:image/png;base64,") for address in addresses)
    assert re.search(r"https?://|//\w+\.\w+|@import|url\(", re.sub(r"data:[^\"]+", "", page)) is None


def test_images_are_sharp_and_not_blank(page: str) -> None:
    for tag, attrs in Tags(page).tags:
        if tag == "img":
            assert attrs["alt"]
            image = Image.open(io.BytesIO(base64.b64decode(str(attrs["src"]).partition(",")[2])))
            assert image.width >= 1500
            assert np.asarray(image.convert("L")).min() < 128


def test_page_shows_the_numbers_first(page: str) -> None:
    data = report_data()
    text = " ".join(" ".join(Tags(page).words).split())
    summary = text.partition("Figures")[0]
    for each in data.summaries:
        for metric in tables.MAIN_METRICS:
            low, high = each.intervals[metric]
            value = tables.format_value(metric, each.metrics[metric])
            assert f"{value} {tables.format_interval(metric, (low, high))}" in summary, (each.model, metric)
    (difference,) = paired_differences(
        data.predictions, baseline="single_task", split="test", resamples=RESAMPLES, seed=0
    )
    gain = 100.0 * difference.metrics["accuracy"]
    assert f"{gain:+.1f} points of accuracy" in summary
    assert "a clear gain" in summary
    assert "DR 880, AMD 590" in summary
    assert "One image was damaged." in summary
    for shown in ("0.6915", "temperature: 3.0", "versions.torch 2.15.0", "61.5", "63.5", "880"):
        assert shown in text, shown


def test_best_task_order_is_that_of_the_data(page: str) -> None:
    first_cells = re.findall(r"<tr><td>(\w+)</td><td>([\w ]+)</td><td>60</td>", page)
    assert first_cells == [
        ("DR", "Single task"),
        ("DR", "SALL"),
        ("DR", "SALL minus single task"),
        ("AMD", "SALL"),
    ]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests of the page's words the seconds that its figures take."""
    monkeypatch.setattr("retina_ray.report.build.figure_uri", lambda figure: "data:,")


def text_of(data: ReportData, folder: Path) -> str:
    return " ".join(" ".join(Tags(write_report(data, folder / "report.html").read_text("utf-8")).words).split())


@pytest.mark.usefixtures("no_pictures")
def test_report_without_resamples_claims_nothing_about_chance(tmp_path: Path) -> None:
    table = report_data().predictions
    bare = summarise(table, split="test", resamples=0, seed=0)
    text = text_of(report_data(summaries=bare, resamples=0, histories={}, timings={}), tmp_path)
    assert "points of accuracy From" in text
    assert "SALL minus single task" in text
    for claim in ("interval", "95%", "clear", " to +"):
        assert claim not in text, claim


@pytest.mark.usefixtures("no_pictures")
def test_one_patient_allows_no_verdict(tmp_path: Path) -> None:
    table = report_data().predictions
    table = table.set_column(table.column_names.index("group_id"), "group_id", pa.array(["one"] * len(table)))
    single = summarise(table, split="test", resamples=5, seed=0)
    text = text_of(report_data(predictions=table, summaries=single), tmp_path)
    assert "points of accuracy From" in text
    assert "clear" not in text


def test_page_says_that_times_begin_at_the_last_start(page: str) -> None:
    assert "since the start or the resume that finished it: what ran before is not counted" in page
    assert "Time by stage, since its last start or resume" in page


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    table = predictions("dr", 5, model=HOSTILE, skill=1.0, seed=0)
    data = report_data(
        title=HOSTILE,
        config_yaml=HOSTILE,
        predictions=table,
        summaries=summarise(table, split="test", resamples=5, seed=0),
        histories={HOSTILE: [{"epoch": 1, f"train_{HOSTILE}": 1.0}]},
        timings={HOSTILE: {"compute_s": 1.0}},
        cam_panels=[],
        soft_labels=[{"task": HOSTILE, "temperature": 1.0, "mean_max": 0.5, "mean_variance": 0.1}],
        data_counts={HOSTILE: {HOSTILE: [1]}},
        environment={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
    parsed = Tags(write_report(data, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)
    assert sum(HOSTILE in words for words in parsed.words) >= 8


def test_nothing_but_a_name_is_still_a_report(tmp_path: Path) -> None:
    table = predictions("dr", 5, model="sall", skill=1.0, seed=0).slice(0, 0)
    data = report_data(
        predictions=table,
        summaries=[],
        histories={"student": [{"kind": "step", "step": 1}]},
        timings={"student": {"images_per_second": 1.0}},
        cam_panels=[],
        soft_labels=[],
        data_counts={},
        environment={},
        notes=[],
    )
    text = write_report(data, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No image of the test split has a grade" in text
    assert "<img" not in text


def test_same_data_same_file(tmp_path: Path) -> None:
    table = predictions("amd", 4, model="sall", skill=2.0, seed=2)
    only = {"predictions": table, "summaries": summarise(table, split="test", resamples=5, seed=0)}
    data = report_data(**only, cam_panels=[], histories={}, timings={}, soft_labels=[])
    first = write_report(data, tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").write_bytes(b"an older report")
    assert write_report(data, tmp_path / "report.html").read_bytes() == first


def test_confusion_cells_hold_counts_and_shares() -> None:
    counts = np.array([[6, 2], [0, 0]])
    figure = figures.confusion_matrices({"SALL": counts}, grades=["normal", "severe"])
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["6\n75%", "2\n25%", "0", "0"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["normal", "severe"]


def test_reliability_bars_split_accuracy_from_the_gap() -> None:
    # Confidence 0.9 that is right half of the time, and 0.6 that is always right.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    truth = np.array([0, 0, 1, 1, 0, 0, 0, 0])
    figure = figures.reliability_diagrams({"SALL": (probabilities, truth)}, bins=10)
    upper = figure.axes[0]
    bars = [[round(float(bar.get_height()), 6) for bar in container] for container in upper.containers]
    assert bars == [[0.6, 0.5], [0.0, 0.4], [0.4, 0.0]]
    assert "ECE 40.0% (8 images)" in upper.get_title()


def test_curves_tolerate_missing_and_mark_the_best_epoch() -> None:
    figure = progress_figures.training_curves(
        [
            {"epoch": 1, "train_loss": 2.0, "validation_loss": 2.1, "validation_psnr": 30.0},
            {"epoch": 2, "validation_loss": 1.5, "validation_accuracy_dr": None},
            {"epoch": 3, "train_loss": 1.0, "validation_loss": 1.8, "validation_accuracy_dr": 0.7},
        ]
    )
    panels = {axes.get_ylabel(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["loss", "validation PSNR (dB)", "validation accuracy (%)"]
    assert np.nanmax(np.asarray(panels["validation accuracy (%)"].lines[0].get_ydata())) == 70.0
    lines = {line.get_label(): line for line in panels["loss"].lines}
    assert np.array_equal(np.asarray(lines["train loss"].get_ydata()), [2.0, np.nan, 1.0], equal_nan=True)
    assert lines["validation loss"].get_linestyle() == "--"
    assert np.asarray(lines["best epoch"].get_xdata()).tolist() == [2, 2]


def test_what_rounds_to_one_number_is_drawn_as_one() -> None:
    history = [{"epoch": number, "validation_kappa_dr": 1e-7 * (number % 2), "lr": 1e-5} for number in (1, 2, 3)]
    figure = progress_figures.training_curves(history)
    heights = {axes.get_ylabel(): np.ptp(axes.get_ylim()) for axes in figure.axes if axes.get_visible()}
    assert heights["validation kappa"] > 1e-3
    assert heights["learning rate"] < 1e-4


def test_no_two_losses_look_alike() -> None:
    terms = ("pixel", "total_variation", "segmentation_aware", "dice", "map_fit", "grading", "classification_aware")
    record = {"train_loss": 4.0, **{f"train_{term}": 1.0 for term in terms}}
    figure = progress_figures.training_curves([{"epoch": 1, **record, "validation_loss_dr": 1.0, "validation_loss": 2}])
    looks = [
        [(line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_label() != "best epoch"]
        for axes in figure.axes
        if axes.get_visible()
    ]
    assert [len(panel) for panel in looks] == [8, 2]
    assert all(len(set(panel)) == len(panel) for panel in looks)


def test_curves_without_an_epoch_are_refused() -> None:
    assert not progress_figures.can_draw([{"kind": "step", "train_loss": 1.0}])
    with pytest.raises(ValueError, match="no epoch record"):
        progress_figures.training_curves([{"kind": "step", "train_loss": 1.0}])


@pytest.mark.parametrize(("seconds", "label", "length"), [(90.0, "s", 90.0), (600.0, "min", 10.0), (9000.0, "h", 2.5)])
def test_timing_bars_choose_a_readable_unit(seconds: float, label: str, length: float) -> None:
    (axes,) = progress_figures.timing_bars({"student": {"compute_s": seconds, "images_per_second": 1e6}}).axes
    assert axes.get_xlabel() == f"wall time ({label})"
    assert [bar.get_width() for container in axes.containers for bar in container] == [length]


def test_heat_map_is_drawn_at_the_size_of_its_image() -> None:
    heatmap = np.zeros((4, 4))
    heatmap[0, 0] = 5.0
    panel = figures.CamPanel(np.zeros((40, 60, 3), dtype=np.uint8), heatmap, "a", "b")
    dark = dataclasses.replace(panel, heatmap=np.zeros((4, 4)))
    figure = figures.cam_panels([panel, dark, panel, panel, panel])
    drawn = [axes.images for axes in figure.axes if axes.images]
    assert [len(images) for images in drawn] == [1] * 4 + [2] * 4 + [1, 2]
    heat = np.asarray(drawn[4][1].get_array())
    assert heat.shape == (40, 60)
    assert heat[:10, :15].max() == heat.max()
    assert heat.max() == pytest.approx(1.0)
    assert np.asarray(drawn[5][1].get_array()).max() == 0.0
    with pytest.raises(ValueError, match="no Grad-CAM panels"):
        figures.cam_panels([])


def test_soft_label_curves_are_ordered_by_temperature() -> None:
    records = [
        {"task": "dr", "temperature": temperature, "mean_max": 1.0 / temperature, "mean_variance": 0.1}
        for temperature in (8.0, 1.0, 3.0)
    ]
    figure = figures.soft_label_statistics(records)
    assert np.asarray(figure.axes[0].lines[0].get_xdata()).tolist() == [1.0, 3.0, 8.0]
    assert figure_uri(figure).startswith("data:image/png;base64,")


def summary(model: str, accuracy: float) -> TaskSummary:
    metrics = dict.fromkeys(METRICS, float("nan")) | {"accuracy": accuracy, "kappa_quadratic": -0.0001}
    intervals = dict.fromkeys(METRICS, (float("nan"), float("nan"))) | {"accuracy": (accuracy - 0.1, accuracy + 0.1)}
    return TaskSummary(model, "dr", 1234, metrics, intervals)


def test_rows_begin_with_the_baseline() -> None:
    rows = tables.comparison_rows(
        [summary("another", 0.8), summary("single_task", 0.75)],
        baseline="single_task",
        metrics=["accuracy", "error", "kappa_quadratic"],
    )
    assert [[(cell.text, cell.interval) for cell in row.values()] for row in rows] == [
        [("DR", ""), (model, ""), ("1,234", ""), (value, interval), ("n/a", ""), ("0.000", "")]
        for model, value, interval in (("Single task", "75.0", "65.0 to 85.0"), ("another", "80.0", "70.0 to 90.0"))
    ]
    assert list(rows[0]) == ["Task", "Model", "Images", "Accuracy (%)", "Err (%)", "Kappa, quadratic"]


def test_html_table_escapes_and_separates_the_interval() -> None:
    rows = [{"<Model>": tables.Cell("a & b", "1 to 2")}]
    html = str(tables.to_html(rows))
    assert "&lt;Model&gt;" in html
    assert "<td>a &amp; b<small>1 to 2</small></td>" in html
    assert tables.to_html([]) == ""
