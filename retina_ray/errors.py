"""The exceptions that users meet and that cross process borders.

Every message says what is wrong, the offending value and what to do about it. The constructor's
arguments are kept in ``args``, so each exception survives pickling between Ray processes.
"""


class RetinaRayError(Exception):
    """A problem the user can solve; the command line prints it as one line and exits with 2.

    Args:
        what: what is wrong, lower case, no full stop.
        value: the offending value.
        fix: what to do, an imperative without a full stop.
    """

    def __init__(self, what: str, value: object, fix: str) -> None:
        super().__init__(what, value, fix)
        self.what = what
        self.value = value
        self.fix = fix

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else repr(self.value)
        return f"{self.what}: {value}; {self.fix}"


class ConfigError(RetinaRayError):
    """A configuration key or value that cannot be used."""


class DataError(RetinaRayError):
    """A data set, table or image that cannot be used."""


class BundleError(RetinaRayError):
    """A trained model's bundle that is missing, damaged or of another version."""


class PromotionError(RetinaRayError):
    """A version of a model that may not take the champion's place."""


class CheckpointError(RetinaRayError):
    """A checkpoint whose files do not match its manifest."""


class ResourceError(RetinaRayError):
    """The machine or cluster lacks what a run asks for."""


class NonFiniteLossError(RetinaRayError):
    """A loss term became NaN or infinite; the update of that step was not applied.

    Args:
        step: the optimiser step, counted from 0 over the whole training.
        term: the name of the first offending loss term (``gradient`` if all terms were finite).
        term_value: its value.
    """

    def __init__(self, step: int, term: str, term_value: float) -> None:
        super().__init__(
            f"loss term {term!r} is not finite at step {step}",
            term_value,
            "lower optim.lr, set train.clip_norm, or check the images of that step",
        )
        self.args = (step, term, term_value)
        self.step = step
        self.term = term
        self.term_value = term_value


class StoppedError(RetinaRayError):
    """The processes were told to end, and what they had done is safe.

    Args:
        step: optimiser steps of the stage that are in its checkpoint; None where it keeps none, since it begins anew.
    """

    def __init__(self, step: int | None) -> None:
        where = "in a stage that begins anew" if step is None else f"with a checkpoint at step {step}"
        super().__init__("told to stop", where, "the same command with --resume goes on")
        self.args = (step,)
        self.step = step


class StalledError(RetinaRayError):
    """Ranks of a training got nowhere for too long, and ended themselves.

    Args:
        ranks: those that said so.
        seconds: that nothing moved.
        folder: where their stacks are.
    """

    def __init__(self, ranks: list[int], seconds: float, folder: str) -> None:
        what = f"no step for {seconds:g} s on rank {', '.join(map(str, ranks))}"
        fix = "see there what each thread was doing; raise runtime.stall_s if a step may take that long"
        super().__init__(what, f"stacks-*.txt in {folder}", fix)
        self.args = (ranks, seconds, folder)
        self.ranks = ranks
        self.seconds = seconds
        self.folder = folder
