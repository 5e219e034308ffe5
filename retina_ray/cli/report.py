"""``retina-ray report``: one self-contained HTML page about a run or a hyper-parameter search."""

from typing import Annotated

import typer

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson


def report(
    folder: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a finished run, or of a search, which may still run.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write the HTML report of a run or a search into its folder."""
    path = _report(folder)
    if as_json:
        print_json({"report": path})
        return
    console().print(path, markup=False, soft_wrap=True)


def _report(folder: str) -> str:
    from retina_ray.data.store import Store
    from retina_ray.orchestration.search_folder import SearchFolder

    search = SearchFolder(Store(folder))
    if search.is_there:
        from retina_ray.orchestration.search_report import report_search

        return report_search(search)
    from retina_ray.orchestration.run_folder import RunFolder
    from retina_ray.orchestration.run_report import report_run

    return report_run(RunFolder.open(folder))
