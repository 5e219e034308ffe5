"""``retina-ray serve compare``: what a shadowing candidate answered, beside what the champion did."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson
from retina_ray.errors import DataError

if TYPE_CHECKING:
    from retina_ray.serving.shadow_comparison import Comparison, Estimate


def compare(
    folder: Annotated[Path, typer.Argument(help="Folder of the shadow logs; of several machines', copied into one.")],
    truth: Annotated[
        Path | None, typer.Option("--truth", help="CSV file: image (SHA-256 of its file), and a column for each task.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a candidate with the champion on the photographs that both have seen.

    How often they agree, and how well beyond chance (quadratic kappa between the two); with the truth, each one's kappa
    and the candidate's gain; and their latencies. Each with its 95 % interval.
    """
    from retina_ray.serving.shadow_comparison import by_pair, read_truth
    from retina_ray.serving.shadow_comparison import compare as compare_records
    from retina_ray.serving.shadow_log import read_shadow_logs

    logs = read_shadow_logs(folder)
    known = None if truth is None else read_truth(truth)
    found, unlike = [], []
    for records in by_pair(logs.records).values():
        try:
            found.append(compare_records(records, known))
        except DataError as error:
            unlike.append(error)
    if unlike and not found:
        raise unlike[0]
    if as_json:
        print_json({"torn": logs.torn, "comparisons": [asdict(each) for each in found]})
        return
    for each in found:
        _tell(each)
    for reason in unlike:
        console().print(f"not compared: {reason}", markup=False, soft_wrap=True)
    if logs.torn:
        console().print(f"{logs.torn} file(s) end in half a record, which was left out", markup=False)


def _tell(found: "Comparison") -> None:
    pair = found.pair
    title = f"{pair.served_as}: champion {pair.champion}, candidate {pair.candidate}"
    console().print(title, markup=False, soft_wrap=True)
    console().print(f"{found.images} photographs, {found.records} copies, {found.failures} of them unanswered")
    table = Table()
    for heading in ("", "figure", "champion", "candidate", "difference or agreement"):
        table.add_column(heading)
    for task, each in found.tasks.items():
        table.add_row(task, "same grade", "", "", _share(each.agreement))
        table.add_row(task, "quadratic kappa between them", "", "", _number(each.kappa))
        if each.truth is not None:
            name = f"quadratic kappa, {each.truth.images} images"
            against = each.truth
            table.add_row(
                task, name, _number(against.champion), _number(against.candidate), _number(against.difference, "+")
            )
    for quantile, latency in found.latency.items():
        difference = _number(latency.difference, "+", digits=1)
        table.add_row("", f"latency {quantile}, ms", f"{latency.champion:.1f}", f"{latency.candidate:.1f}", difference)
    console().print(table)


def _share(found: "Estimate") -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def _number(found: "Estimate", sign: str = "", *, digits: int = 3) -> str:
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"
