"""A grid hands every run out once, and never two that would train the same artifact."""

from hypothesis import given
from hypothesis import strategies as st

from retina_ray.orchestration.grid import Grid, GridRun
from retina_ray.orchestration.live_search import MAX_DEATHS
from retina_ray.recipes import load_recipe


def run_of(number: int, keys: set[str]) -> GridRun:
    config = load_recipe("sall_debug").model_copy(update={"name": f"run-{number}"})
    return GridRun(number, config, "", False, frozenset(keys))


class Watched(Grid):
    """A grid with a record of what ended."""

    def __init__(self, keys: list[set[str]]) -> None:
        self.ended: list[tuple[int, str]] = []
        runs = [run_of(number, own) for number, own in enumerate(keys)]
        super().__init__(runs, lambda run, failure: self.ended.append((run.number, failure)))


KEYS = st.lists(st.sets(st.sampled_from("abcde"), min_size=1), max_size=8)


@given(KEYS, st.randoms(use_true_random=False))
def test_every_run_ends_once_and_no_artifact_is_trained_twice(keys: list[set[str]], chance: object) -> None:
    grid, finished = Watched(keys), set()
    running: dict[int, GridRun] = {}
    for _ in range(200):
        given_out = grid.next()
        if isinstance(given_out, GridRun):
            for other in running.values():
                assert not (given_out.keys & other.keys) - finished
            running[given_out.number] = given_out
            continue
        if given_out is None:
            assert not running
            break
        assert running, "later means that something runs"
        number = chance.choice(sorted(running))  # type: ignore[attr-defined]
        finished |= running.pop(number).keys
        grid.end(number)
    assert sorted(number for number, _ in grid.ended) == list(range(len(keys)))


def test_runs_that_share_an_artifact_wait_for_the_first() -> None:
    grid = Watched([{"teacher", "T1"}, {"teacher", "T3"}, {"other"}])
    first, third = grid.next(), grid.next()
    assert isinstance(first, GridRun)
    assert isinstance(third, GridRun)
    assert (first.number, third.number) == (0, 2)
    assert grid.next() == "later"
    grid.end(0)
    second = grid.next()
    assert isinstance(second, GridRun)
    assert second.number == 1


def test_a_failure_does_not_count_as_a_finished_artifact() -> None:
    grid = Watched([{"teacher"}, {"teacher"}, {"teacher"}])
    grid.next()
    grid.end(0, "no images")
    grid.next()
    assert grid.next() == "later"
    assert grid.failures == {"run-0": "no images"}


def test_a_run_whose_process_dies_runs_again_but_not_for_ever() -> None:
    grid = Watched([{"a"}])
    for _ in range(MAX_DEATHS + 1):
        run = grid.next()
        assert isinstance(run, GridRun)
        grid.lose(run.number)
    assert grid.next() is None
    assert "died again and again" in grid.failures["run-0"]
