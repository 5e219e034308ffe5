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
