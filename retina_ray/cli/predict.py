"""``retina-ray predict``: grade photographs with a bundle."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from retina_ray.cli.console import console, error_console, print_json
from retina_ray.cli.options import AsJson, resolve
from retina_ray.errors import DataError


def predict(
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/NAME@ALIAS or models:/NAME/VERSION.")],
    images: Annotated[list[Path], typer.Argument(help="Photographs.")],
    low_resolution: Annotated[
        bool, typer.Option("--low-resolution", help="The photographs are what a super-resolving model takes.")
    ] = False,
    storage: Annotated[str | None, typer.Option("--storage", help="Where the registry of models:/ lies.")] = None,
    as_json: AsJson = False,
) -> None:
    """Grade photographs.

    A photograph that cannot be graded is named with the reason, the others are graded all the same; the exit code is
    then 2.
    """
    from retina_ray.bundle import Bundle
    from retina_ray.registry import resolve_model
    from retina_ray.serving.predictor import Predictor

    config = resolve("sall", None, None, runtime__storage=storage)
    predictor = Predictor(Bundle.load(resolve_model(model, config=config)), low_resolution=low_resolution)
    answers: dict[str, Any] = {}
    refused: list[DataError] = []
    for image in images:
        try:
            answers[str(image)] = predictor.grade(_read(image), name=str(image))
        except DataError as error:
            refused.append(error)
            answers[str(image)] = {"error": str(error)}
    if as_json:
        print_json({name: _plain(answer) for name, answer in answers.items()})
    else:
        _show(answers)
    if refused and not as_json:
        for refusal in refused:
            error_console().print(f"error: {refusal}", style="red", markup=False, soft_wrap=True)
    if refused:
        raise typer.Exit(2)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image ({error.strerror})", str(path), "check the path") from None


def _plain(answer: Any) -> Any:
    return answer if isinstance(answer, dict) else answer.model_dump(mode="json")


def _show(answers: dict[str, Any]) -> None:
    table = Table()
    for heading in ("image", "task", "grade", "confidence", "refer", "possible grades"):
        table.add_column(heading, justify="right" if heading == "confidence" else "left")
    for name, answer in answers.items():
        if isinstance(answer, dict):
            continue
        for task, grade in answer.tasks.items():
            refer = "a human decides" if grade.abstain else "yes" if grade.referable else "no"
            possible = ", ".join(str(each) for each in grade.prediction_set)
            table.add_row(
                Path(name).name, task, f"{grade.grade} {grade.grade_name}", f"{grade.confidence:.1%}", refer, possible
            )
    if table.row_count:
        console().print(table)
    for name, answer in answers.items():
        if not isinstance(answer, dict) and not answer.image.ok:
            console().print(f"{name}: {answer.image.reason}", markup=False, soft_wrap=True)
