"""``retina-ray predict``: grade photographs, with a bundle or by asking a service."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from retina_ray.cli.console import console, error_console, print_json
from retina_ray.cli.options import AsJson, resolve
from retina_ray.client import Client, RequestError
from retina_ray.errors import ConfigError, DataError
from retina_ray.serving.schema import Explanation, GradeResponse

KEY_VARIABLE = "RETINA_RAY_API_KEY"

_PICTURES: Any = {"explanation": {"tasks"}, "lesions": {"__all__": {"mask"}}, "enhanced": True, "fundus": True}
"""Fields of an answer that hold PNG files."""


@dataclass(frozen=True, slots=True)
class _Graded:
    """An answer, and the files of its pictures if they are written: what each shows -> its path."""

    answer: GradeResponse
    files: dict[str, str] | None


def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] PHOTOGRAPH...",
            help="Bundle folder, or models:/NAME@ALIAS or models:/NAME/VERSION, then photographs; with --url "
            "photographs alone.",
        ),
    ],
    low_resolution: Annotated[
        bool, typer.Option("--low-resolution", help="The photographs are what a super-resolving model takes.")
    ] = False,
    storage: Annotated[str | None, typer.Option("--storage", help="Where the registry of models:/ lies.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Ask the service at this address.")] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help=f"File with the service's API key; else {KEY_VARIABLE} holds it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="What the service calls the model; by default its first.")
    ] = None,
    explain: Annotated[
        Explanation | None, typer.Option("--explain", help="The service draws what the grades go by.")
    ] = None,
    lesions: Annotated[bool, typer.Option("--lesions", help="The service segments lesions.")] = False,
    enhance: Annotated[bool, typer.Option("--enhance", help="The service super-resolves.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the service's pictures, PNG files.")] = None,
    as_json: AsJson = False,
) -> None:
    """Grade photographs.

    A photograph that cannot be graded is named with the reason, the others are graded all the same; the exit code is
    then 2.
    """
    if url is None:
        served = {"--key-file": key_file, "--model": model, "--explain": explain, "--lesions": lesions}
        _refuse(served | {"--enhance": enhance, "--out": out}, "only a service takes this", "name one with --url")
        bundle, *names = arguments
        if not names:
            raise ConfigError("no photograph is named", bundle, "name a bundle, then photographs")
        _grade_all(names, _grader(bundle, storage, low_resolution=low_resolution), None, as_json=as_json)
        return
    _refuse({"--storage": storage}, "a service has its models already", "leave it out")
    if out is None and not as_json:
        _refuse({"--explain": explain, "--enhance": enhance}, "its pictures have no place", "name a folder with --out")
    with Client(url, _key(key_file)) as client:
        asked = partial(
            client.grade,
            model=model,
            explain=explain,
            lesions=lesions,
            enhance=enhance,
            low_resolution=low_resolution,
        )
        _grade_all(arguments, asked, None if out is None else _Pictures(out), as_json=as_json)


def _refuse(options: Mapping[str, object], what: str, fix: str) -> None:
    """Refuse options that are given where they have no meaning."""
    for option, value in options.items():
        if value:
            raise ConfigError(what, option, fix)


def _grader(model: str, storage: str | None, *, low_resolution: bool) -> Callable[[Path], GradeResponse]:
    from retina_ray.bundle import Bundle
    from retina_ray.registry import resolve_model
    from retina_ray.serving.predictor import Predictor

    config = resolve("sall", None, None, runtime__storage=storage)
    predictor = Predictor(Bundle.load(resolve_model(model, config=config)), low_resolution=low_resolution)
    return lambda image: predictor.grade(_read(image), name=str(image))


def _key(file: Path | None) -> str | None:
    """Return the API key, if there is one."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the API key ({error.strerror})", str(file), "check the path") from None
    except UnicodeDecodeError:
        raise ConfigError("the file holds no API key", str(file), "check the path") from None


class _Pictures:
    """Writes the pictures of answers into a folder, made if need be; what is there of that name is replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, image: Path, answer: GradeResponse) -> dict[str, str]:
        """Return what each picture shows -> its file."""
        stem, number = image.stem, 1
        while stem in self._taken:  # photographs of one name from several folders
            number += 1
            stem = f"{image.stem}-{number}"
        self._taken.add(stem)
        written = {}
        for what, png in _pictures(answer):
            # The service's words are names of files here: none may lead out of the folder.
            path = self._folder / f"{stem}-{re.sub(r'[^A-Za-z0-9_.-]', '_', what)}.png"
            try:
                path.write_bytes(png)
            except OSError as error:
                raise self._unwritable(error) from None
            written[what] = str(path)
        return written

    def _unwritable(self, error: OSError) -> ConfigError:
        what = f"cannot write pictures ({error.strerror})"
        return ConfigError(what, str(self._folder), "name a folder that you may write with --out")


def _pictures(answer: GradeResponse) -> Iterator[tuple[str, bytes]]:
    if answer.fundus is not None:
        yield "fundus", answer.fundus
    if answer.explanation is not None:
        for task, png in answer.explanation.tasks.items():
            yield f"{answer.explanation.method}-{task}", png
    for lesion, found in (answer.lesions or {}).items():
        yield f"lesions-{lesion}", found.mask
    if answer.enhanced is not None:
        yield "enhanced", answer.enhanced


def _grade_all(
    names: list[str], grade: Callable[[Path], GradeResponse], pictures: _Pictures | None, *, as_json: bool
) -> None:
    """Grade photographs and show the answers; one that cannot be graded does not keep the others from it."""
    results: dict[str, _Graded | str] = {}  # or why it is not graded
    failure: RequestError | None = None
    for image in map(Path, names):
        try:
            answer = grade(image)
            results[str(image)] = _Graded(answer, None if pictures is None else pictures.write(image, answer))
        except DataError as error:
            results[str(image)] = str(error)
        except RequestError as error:
            if not _blames_photograph(error):
                failure = error
                break
            results[str(image)] = f"{image}: {error}"
    graded = {name: result for name, result in results.items() if isinstance(result, _Graded)}
    refused = [result for result in results.values() if isinstance(result, str)]
    if as_json:
        print_json({name: _plain(result) for name, result in results.items()})
    else:
        _show(graded)
        for refusal in refused:
            error_console().print(f"error: {refusal}", style="red", markup=False, soft_wrap=True)
    if failure is not None:  # it would fail for the photographs that are left as well
        raise failure
    if refused:
        raise typer.Exit(2)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image ({error.strerror})", str(path), "check the path") from None


def _blames_photograph(error: RequestError) -> bool:
    """Return whether another photograph may well be graded."""
    unsupported = error.problem is not None and error.problem.type == "unsupported"
    return error.status in (413, 415, 422) and not unsupported


def _plain(result: _Graded | str) -> dict[str, Any]:
    """Return a result for JSON; pictures that are in files are not in it once more."""
    if isinstance(result, str):
        return {"error": result}
    if result.files is None:
        return result.answer.model_dump(mode="json")
    kept = result.answer.model_dump(mode="json", exclude=_PICTURES)
    return kept | {"pictures": result.files}


def _show(graded: dict[str, _Graded]) -> None:
    table = Table()
    for heading in ("image", "task", "grade", "confidence", "refer", "possible grades"):
        table.add_column(heading, justify="right" if heading == "confidence" else "left")
    for name, result in graded.items():
        for task, grade in result.answer.tasks.items():
            # What a poor photograph does not show may be there all the same.
            cleared = "no" if result.answer.image.ok else "retake first"
            refer = "a human decides" if grade.abstain else "yes" if grade.referable else cleared
            possible = ", ".join(str(each) for each in grade.prediction_set)
            table.add_row(
                Path(name).name, task, f"{grade.grade} {grade.grade_name}", f"{grade.confidence:.1%}", refer, possible
            )
    if table.row_count:
        console().print(table)
    for name, result in graded.items():
        lines = [] if result.answer.image.ok else [str(result.answer.image.reason)]
        if result.answer.lesions is not None:
            areas = ", ".join(f"{lesion} {found.area:.2%}" for lesion, found in result.answer.lesions.items())
            lines.append(f"lesions, share of the fundus disc: {areas}")
        lines += (result.files or {}).values()
        for line in lines:
            console().print(f"{name}: {line}", markup=False, soft_wrap=True)
