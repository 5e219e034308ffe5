"""Fill an experiment's table from what its runs left behind."""

from collections.abc import Mapping

from retina_ray.methods.sall import SINGLE_TASK
from retina_ray.reproduce.experiment import Column, Experiment, Row
from retina_ray.reproduce.measure import Measured, SeedOutcomes, Settings, gain, measured

Cells = dict[tuple[int, str], Measured]


def measure_all(
    experiment: Experiment, outcomes: Mapping[str, SeedOutcomes], settings: Settings
) -> tuple[Cells, Cells]:
    """Return what every row reaches, and what the rows that are compared with another gain over it.

    Args:
        experiment: its rows and columns.
        outcomes: of every arm, by its name.
        settings: how figures are measured.

    Returns:
        Figures by number of the row and label of the column, twice.

    Raises:
        DataError: an arm has no predictions for a column.
    """
    cells: Cells = {}
    for number, row in enumerate(experiment.rows):
        for column in experiment.columns:
            if row.fills(column):
                cells[number, column.label] = _measured(row, column, outcomes[row.arm], settings)
    gains: Cells = {}
    for number, row in enumerate(experiment.rows):
        if row.against is None:
            continue
        for column in experiment.columns:
            ours, theirs = cells.get((number, column.label)), cells.get((row.against, column.label))
            if ours is not None and theirs is not None:
                gains[number, column.label] = gain(ours, theirs, column, settings)
    return cells, gains


def _measured(row: Row, column: Column, outcomes: SeedOutcomes, settings: Settings) -> Measured:
    model = SINGLE_TASK if row.baseline else outcomes[0][0].model
    return measured(outcomes, column, model=model, settings=settings)
