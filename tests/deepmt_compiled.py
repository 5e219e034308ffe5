"""Steps of DeepMT-DR with its parts compiled against the same steps without: ``python -m tests.deepmt_compiled``.

In a process of its own: the type checks that tests add to every function are more than torch.compile can trace.
"""

import torch

from tests.deepmt import a_batch, built, method_of, step

MAPS = ("gmsv", "grad_cam", "guided_backprop", "smooth_grad")
SMALL = {
    "method.segmentation.depth": 2,
    "method.segmentation.gamma": [0.5, 1.0],
    "method.grading.dropout": 0.0,  # compiled, it draws other numbers
}
SMALL_GRADER: dict[str, object] = {"method.grading.backbone": "squeezenet1_1", "method.evidence.map": "none"}
CASES: list[tuple[str, dict[str, object]]] = [
    ("restoration", {}),
    ("grading", SMALL_GRADER),
    ("grading", {"method.evidence.fusion": "learned", "method.stages.grading.map_fit": 1.0}),
    *(("joint", {"method.evidence.map": kind}) for kind in MAPS),
    ("joint", SMALL_GRADER),
    ("joint", {"method.segmentation.mode": "independent"}),
]


def compare(stage: str, changes: dict[str, object]) -> None:
    """Check terms, gradients and running statistics of a step and, where all nets are compiled, an evaluation."""
    method = method_of(stage, {**SMALL, **changes})
    network, compiled = built(method), built(method)
    for part in method.differentiated_once(compiled):
        part.compile(backend="aot_eager")  # the default one's first half, which is where a second derivative fails
    batch = a_batch(fixed=True)
    ours, plain = (step(method, each, batch) for each in (compiled, network))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
    for terms in (ours, plain):
        method.total(terms).backward()
    torch.testing.assert_close(compiled.state_dict(), network.state_dict())
    for (name, found), expected in zip(compiled.named_parameters(), network.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if found.grad is not None and expected.grad is not None:
            scale = expected.grad.abs().max() + 1e-6
            torch.testing.assert_close(found.grad / scale, expected.grad / scale, rtol=0, atol=2e-3)
    if len(method.differentiated_once(compiled)) < 3:
        return
    with torch.inference_mode():
        ours, plain = (method.evaluate(each.eval(), batch, final=True).probabilities for each in (compiled, network))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    for case in CASES:
        compare(*case)
        print(*case, flush=True)
