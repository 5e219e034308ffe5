"""A finished experiment as Markdown, CSV, LaTeX and chart."""

import csv
import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest

from retina_ray.reproduce.chart import draw_chart
from retina_ray.reproduce.experiment import Arm, Axes, Column, Experiment, Printed, Row
from retina_ray.reproduce.measure import Measured
from retina_ray.reproduce.table import Finished, to_csv, to_latex, to_markdown

NOWHERE = (math.nan, math.nan)

EXPERIMENT = Experiment(
    "demo-table1",
    "A table | of 100 %",
    "sall",
    arms=(Arm("a"), Arm("b")),
    rows=(
        Row({"T": "1", "Model": "single_task"}, "a", printed={"acc": Printed(75.39)}),
        Row({"T": "3", "Model": "ours"}, "b", against=0, printed={"acc": Printed(78.01, 0.5)}),
        Row({"T": "3", "Model": "theirs"}, left_out="no library has it", printed={"acc": Printed(80.0)}),
    ),
    columns=(Column("acc", "accuracy", "dr"), Column("PSNR", "psnr", stage="joint", unit="dB")),
    charts=(
        Axes("curves", (("acc",),), x="T"),
        Axes("bars", (("acc",), ("PSNR",)), x="Model"),
        Axes("columns", (("acc", "PSNR"),), series="Model"),
    ),
    notes=("Drawn images.",),
)


def seen(*values: float, interval: tuple[float, float] = NOWHERE, images: int = 10) -> Measured:
    return Measured(np.array(values), interval, np.zeros(0), images)


FINISHED = Finished(
    EXPERIMENT,
    cells={
        (0, "acc"): seen(0.5, 0.6, interval=(0.4, 0.7)),
        (1, "acc"): seen(0.75, 0.75, interval=(0.7, 0.8)),
        (1, "PSNR"): seen(31.25),
    },
    gains={(1, "acc"): seen(0.25, 0.15, interval=(0.05, 0.3))},
    apart="these images are drawn",
    setting="Data set: here.",
)


def test_markdown_has_ours_and_the_papers_side_by_side() -> None:
    text = to_markdown(FINISHED)
    assert "| T | Model | acc (%) | acc, paper | PSNR (dB) |" in text
    assert "| 1 | single_task | 55.00 ± 7.07 [40.00, 70.00] | 75.39 |  |" in text
    assert "| 3 | ours | 75.00 ± 0.00 [70.00, 80.00] | 78.01 (0.5) | 31.25 |" in text
    assert "| 3 | theirs | left out | 80.00 | left out |" in text
    assert "| T 3, Model ours minus T 1, Model single_task | +20.00 ± 7.07 [5.00, 30.00] |  |" in text
    assert "* Not comparable with the paper's: these images are drawn." in text
    assert "* Left out: T 3, Model theirs: no library has it." in text
    assert "* Drawn images." in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for first, second in pairwise(rows):
        if second.startswith("| ---"):
            assert first.count("|") == second.count("|")


def test_markdown_says_where_figures_can_be_compared() -> None:
    text = to_markdown(Finished(EXPERIMENT, FINISHED.cells))
    assert "comparable if these are its own splits" in text
    assert "Not comparable" not in text


def test_csv_holds_every_figure_in_its_unit() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(FINISHED))))
    ours = next(row for row in rows if row["Model"] == "ours" and row["figure"] == "acc")
    assert float(ours["mean"]) == 75.0
    assert (float(ours["low"]), float(ours["high"])) == (70.0, 80.0)
    assert (ours["paper"], ours["paper_sd"], ours["seeds"], ours["images"]) == ("78.01", "0.5", "2", "10")
    restored = next(row for row in rows if row["figure"] == "PSNR")
    assert (restored["unit"], float(restored["mean"]), restored["sd"]) == ("dB", 31.25, "")
    theirs = [row for row in rows if row["Model"] == "theirs"]
    assert [(row["mean"], row["paper"]) for row in theirs] == [("", "80")]
    assert {row["left_out"] for row in theirs} == {"no library has it"}
    assert ours["paper_comparable"] == "no"
    assert [ours[name] for name in ("gain_over", "gain", "gain_low")] == ["T 1, Model single_task", "20", "5"]
    same = csv.DictReader(io.StringIO(to_csv(Finished(EXPERIMENT, FINISHED.cells))))
    assert {row["paper_comparable"] for row in same if row["paper"]} == {"yes"}


def test_latex_is_balanced_and_escaped() -> None:
    text = to_latex(FINISHED)
    assert r"single\_task & 55.00 $\pm$ 7.07 [40.00, 70.00] & 75.39 &  \\" in text
    assert r"of 100 \%" in text
    assert "Data set: here." in text
    assert "Drawn images." in text
    assert r"T 3, Model ours minus T 1, Model single\_task & +20.00 $\pm$ 7.07 [5.00, 30.00]" in text
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    assert not re.search(r"(?<!\\)[%_#]", text)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert {line.count("&") for line in body.splitlines() if "&" in line} == {4}


def test_latex_takes_any_name() -> None:
    rows = (Row({"Source": "a^b<c>|d\\e~f"}, given={"acc": 1.0}),)
    text = to_latex(Finished(Experiment("x", "X", "sall", rows=rows, columns=EXPERIMENT.columns), {}))
    escaped = "a@asciicircum{}b@less{}c@greater{}@bar{}d@backslash{}e@asciitilde{}f".replace("@", "\\text")
    assert escaped in text


def test_figures_that_take_no_run_are_shown() -> None:
    counts = (Column("Train", "train", unit="images"),)
    rows = (Row({"Grade": "normal"}, given={"Train": 7.0}, printed={"Train": Printed(7359)}),)
    finished = Finished(Experiment("sall-table1", "Data", "sall", rows=rows, columns=counts), {})
    assert "| normal | 7 | 7359 |" in to_markdown(finished)
    assert "normal,Train,images,7," in to_csv(finished)


def test_charts_say_whether_the_paper_can_be_compared() -> None:
    for finished, word in ((FINISHED, "paper (not comparable)"), (Finished(EXPERIMENT, FINISHED.cells), "paper")):
        curves, bars, _ = (draw_chart(finished, axes) for axes in EXPERIMENT.charts)
        for figure in (curves, bars):
            legend = figure.axes[0].get_legend()
            assert legend is not None
            assert any(text.get_text().endswith(word) for text in legend.get_texts())


def test_charts_show_every_point() -> None:
    curves, bars, columns = (draw_chart(FINISHED, axes) for axes in EXPERIMENT.charts)
    line = curves.axes[0].lines[0]
    assert list(line.get_xdata()) == [1.0, 3.0]
    assert list(line.get_ydata()) == pytest.approx([55.0, 75.0])
    assert [patch.get_height() for patch in bars.axes[0].patches] == pytest.approx([55.0, 75.0])
    assert [patch.get_height() for patch in bars.axes[1].patches] == pytest.approx([31.25])
    assert sorted(patch.get_height() for patch in columns.axes[0].patches) == pytest.approx([31.25, 55.0, 75.0])
