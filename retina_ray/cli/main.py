"""The ``retina-ray`` command: registers the verbs and turns errors into one line and an exit code.

Exit codes: 0 done; 1 a defect of ours; 2 a problem the user can solve; 130 interrupted; 143 told to stop by SIGTERM.
"""

import os
import sys
import traceback

import typer
from pydantic import ValidationError

from retina_ray.cli import (
    data,
    demo,
    evaluate,
    jobs,
    models,
    predict,
    recipes,
    report,
    reproduce,
    serve,
    train,
    tune,
    validate,
)
from retina_ray.cli.console import error_console
from retina_ray.errors import RetinaRayError, StoppedError

app = typer.Typer(
    name="retina-ray",
    help="Train, search and serve retinal fundus models on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("validate")(validate.validate)
app.command("report")(report.report)
app.command("reproduce")(reproduce.reproduce)
app.command("predict")(predict.predict)
app.add_typer(models.app, name="models")
app.add_typer(serve.app, name="serve")
app.add_typer(jobs.app, name="jobs")

INTERRUPTED, STOPPED = 130, 143

DEBUG_VARIABLE = "RETINA_RAY_DEBUG"


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Keep the options that come before the verb."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main() -> None:
    """Run the command line and exit."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if len(arguments) < len(sys.argv) - 1:  # accepted anywhere, not only before the verb
        os.environ[DEBUG_VARIABLE] = "1"
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        result = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except RetinaRayError as error:
        return _explain(error, str(error), code=STOPPED if isinstance(error, StoppedError) else 2)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # wrong usage, as the parser found it
            return _explain(error, _usage(error, error.format_message()), code=2)
        return _explain(error, f"unexpected {type(error).__name__}: {error} (--debug shows where)", code=1)
    if result == INTERRUPTED:  # Typer has turned a command's KeyboardInterrupt into it
        error_console().print(f"interrupted{_how_to_go_on(arguments)}", style="yellow")
    return result if isinstance(result, int) else 0


def _how_to_go_on(arguments: list[str]) -> str:
    if arguments[:2] == ["data", "ingest"] or arguments[:1] in (["demo"], ["reproduce"]) or "--resume" in arguments:
        return "; the same command goes on"
    return "; with --resume it goes on" if arguments[:1] in (["train"], ["tune"]) else ""


def _usage(error: Exception, message: str) -> str:
    """Return what the parser says, with the value that it means, which it may leave out."""
    cause = error.__cause__
    value = str(cause.errors()[0]["input"]) if isinstance(cause, ValidationError) else ""
    told = message.rstrip(".") + ("" if value in message else f": {value}")
    return f"{told}. See `retina-ray --help`."


def _explain(error: BaseException, message: str, *, code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    error_console().print(
        f"error: {' '.join(message.split())}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    return code
