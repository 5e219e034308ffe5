"""Several nodes, and the training on them to which nothing happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_nodes import Nodes, ray_nodes, running
from tests.survival import a_config, command, is_whole, train_to_the_end, weights


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head without CPUs, as large clusters have, and two nodes of one each."""
    with ray_nodes(head_cpus=0) as found:
        found.add()
        found.add()
        yield found


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run on two workers to which nothing happens."""
    storage = tmp_path_factory.mktemp("undisturbed")
    with running(nodes, *command(a_config(data, storage, name="undisturbed"), nodes)) as run:
        train_to_the_end(run)
    is_whole(storage)
    return weights(storage)
