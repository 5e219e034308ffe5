"""Three processes that all tests of this folder share: starting one costs seconds."""

from collections.abc import Iterator

import pytest

from tests.helpers import Ranks, ranks_of


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    with ranks_of(3) as started:
        yield started
