"""A search whose data, journal, artifacts and winner are all on a real S3 server."""

from pathlib import Path

import pytest

from retina_ray.data.store import Store
from retina_ray.orchestration.search_folder import SearchFolder
from retina_ray.orchestration.search_report import report_search
from retina_ray.orchestration.tune_driver import SearchOptions, run_search
from retina_ray.orchestration.tune_winner import publish_winner
from tests.helpers import tiny_config


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_search_on_s3_goes_on_and_ends_as_one_on_a_disk(bucket: str, data: str, tmp_path: Path) -> None:
    runs = f"s3://{bucket}/runs"
    settings = {"name": "search", "train__epochs": 2, "runtime__cpus_per_worker": 1}
    here = tiny_config(tmp_path / "data", tmp_path / "runs", **settings)
    there = tiny_config(
        Path(),
        Path(),
        **settings,
        data__path=data,
        runtime__storage=runs,
        runtime__cache=str(tmp_path / "cache"),
    )
    plain = run_search(here, SearchOptions("sall", trials=3, concurrent=1))
    run_search(there, SearchOptions("sall", trials=2, concurrent=1))
    assert len(SearchFolder.open(f"{runs}/search").trials()) == 2
    result = run_search(there, SearchOptions("sall", trials=3, concurrent=1), resume=True)
    for ours, wanted in zip(result.trials, plain.trials, strict=True):
        assert (ours.params, ours.state) == (wanted.params, wanted.state)
        assert [report.figures for report in ours.reports] == [report.figures for report in wanted.reports]
    winner = publish_winner(result)
    assert winner.published.bundle_uri.startswith(f"{runs}/search-trial-")
    report_search(SearchFolder.open(f"{runs}/search"))
    assert b"<html" in Store(f"{runs}/search").read_bytes("report.html")[:500]
