"""Which of two models a photograph goes to: the one that is served, or a candidate that sees a share or a copy."""

from dataclasses import dataclass

from retina_ray.serving.model_link import ModelLink

_SHARES = 1 << 32


@dataclass(frozen=True, slots=True)
class Trial:
    """How a candidate is tried on live photographs.

    Attributes:
        canary_percent: share of the photographs that it answers, 0 to 100.
        shadow: whether it sees a copy of the others, whose answers nobody waits for.
    """

    canary_percent: float = 0.0
    shadow: bool = False


@dataclass(slots=True)
class Route:
    """The models behind a served name.

    Attributes:
        champion: the model that is served.
        candidate: the one that is tried, if any.
        trial: how; may be changed at any time.
    """

    champion: ModelLink
    candidate: ModelLink | None = None
    trial: Trial = Trial()

    def goes_to_candidate(self, image_sha256: str) -> bool:
        """Tell whether the candidate answers a photograph: the same for all its repetitions, on every replica."""
        if self.candidate is None:
            return False
        return int(image_sha256[:8], 16) * 100.0 < self.trial.canary_percent * _SHARES
