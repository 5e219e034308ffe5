"""A world of one hears of its own wishes at once; what several ranks hear is in ``tests/distributed``."""

import torch

from retina_ray.training.ballot import Ballot
from retina_ray.training.world import World


def test_a_world_of_one_hears_its_wishes_at_once() -> None:
    ballot = Ballot(World(device=torch.device("cpu")))
    assert [ballot.cast(wish, not wish) for wish in (True, False)] == [(True, False), (False, True)]
