"""The fast joint step computes what the plain one does: values, gradients, over steps and from kept maps."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.deepmt import a_batch, built, gradients, method_of, step
from tests.deepmt_reference import plain, reference_terms

NO_DROPOUT = {"method.grading.dropout": 0.0}  # the reference runs the grader more often


@pytest.fixture
def _double() -> Iterator[None]:
    """Compute in double.

    In single a change of the images by 1e-7 changes the plain step's own terms by up to 7e-4, since the batch
    statistics of the coarsest map are those of a few numbers.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_terms_and_gradients_are_those_of_the_plain_step(mode: str) -> None:
    method = method_of("joint", {**NO_DROPOUT, "method.segmentation.mode": mode})
    network = built(method).double()
    twin = plain(network)
    batch = a_batch(masks=(True, False, True, False), grades=(2, 0, 4, 1), fixed=True, side=96)
    batch = replace(batch, images=batch.images.double())
    for _ in range(2):  # the second time, fixed maps come from where they are kept
        network.zero_grad()
        twin.zero_grad()
        ours = step(method, network, batch)
        theirs = reference_terms(method, twin, batch)
        assert ours.keys() == theirs.keys()
        for name, term in theirs.items():
            torch.testing.assert_close(
                ours[name], term, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: name + text
            )
        gradients(method, ours, network)
        gradients(method, theirs, twin)
        wanted = dict(twin.named_parameters())
        for name, parameter in network.named_parameters():
            # Enlarging in two steps puts the convolution one level deeper.
            other = wanted.get(name) if name in wanted else wanted[_deeper(name)]
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                scale = float(parameter.grad.abs().max()) + 1e-6
                torch.testing.assert_close(parameter.grad / scale, other.grad / scale, rtol=0, atol=1e-8)


def _deeper(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    return f"{module}.1.{kind}"
