"""Every table and figure that can be run, by name."""

import difflib

from retina_ray.errors import ConfigError
from retina_ray.reproduce import deepmt, sall, sources
from retina_ray.reproduce.experiment import Build, Experiment, Method, Scope

EXPERIMENTS: dict[str, Build] = {**sall.EXPERIMENTS, **deepmt.EXPERIMENTS, **sources.EXPERIMENTS}


def find(name: str) -> Build:
    """Return what lays an experiment out.

    Raises:
        ConfigError: there is none of that name; the nearest is named.
    """
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.0)[0]
        fix = f"did you mean {near}? `retina-ray reproduce list` shows all"
        raise ConfigError("unknown table or figure", name, fix)
    return EXPERIMENTS[name]


def method_of(name: str) -> Method | None:
    """Return the method that an experiment is about; None: any."""
    find(name)
    for method, own in (("sall", sall.EXPERIMENTS), ("deepmt", deepmt.EXPERIMENTS)):
        if name in own:
            return method  # type: ignore[return-value]  # one of the two
    return None


def summary_of(name: str) -> str:
    """Return what an experiment shows, in a line."""
    return (find(name).__doc__ or "").split("\n")[0].removeprefix("Return ")


def apart(experiment: Experiment, scope: Scope, *, debug: bool, folds: int | None) -> str:
    """Return why the paper's figures cannot be compared with ours; empty where they can.

    Args:
        experiment: whose.
        scope: what it was laid out for.
        debug: whether it was made small.
        folds: of cross-validation, if the data set's own splits are not used.
    """
    if debug:
        return "networks of the debug budget hardly learn, and show only that the way works"
    if not experiment.printed_on:
        return "the paper's images are partly private, and none of these"
    if tuple(scope.sources) != (experiment.printed_on,):
        return f"the paper's images are those of {experiment.printed_on}, these are of {', '.join(scope.sources)}"
    if folds is not None:
        return "the paper takes the data set's own splits, not folds"
    if scope.resolutions[-1] != 1024:
        return f"the paper's images have 1,024 px, these {scope.resolutions[-1]:,}"
    return ""
