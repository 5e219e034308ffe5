"""``retina-ray report``: one self-contained HTML page about a run."""

from typing import Annotated

import typer

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson


def report(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.")],
    as_json: AsJson = False,
) -> None:
    """Write the HTML report of a run into its folder."""
    from retina_ray.orchestration.run_folder import RunFolder
    from retina_ray.orchestration.run_report import report_run

    path = report_run(RunFolder.open(run))
    if as_json:
        print_json({"report": path})
        return
    console().print(path, markup=False, soft_wrap=True)
