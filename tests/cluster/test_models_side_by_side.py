"""SALL and DeepMT-DR behind one endpoint, with the networks apart from the ingress and in it."""

from pathlib import Path

import pytest

from retina_ray.bundle import Bundle
from tests.bundles import make_deepmt, make_everything
from tests.endpoints import endpoint_of, wait_for
from tests.serving_photographs import photograph


@pytest.mark.parametrize("layout", ["one_hop", pytest.param("two_hop", marks=pytest.mark.long)])
def test_two_methods_are_served_side_by_side(tmp_path: Path, layout: str) -> None:
    sall, deepmt = make_everything(tmp_path / "grades"), make_deepmt(tmp_path / "lesions")
    bundles = {
        "sall": sall.build(tmp_path / "sall", name="sall").store.uri,
        "deepmt": deepmt.build(tmp_path / "deepmt", name="deepmt").store.uri,
        "second": sall.build(tmp_path / "second", name="second").store.uri,
    }
    served = {name: {"bundle": bundles[name]} for name in ("sall", "deepmt")}
    deployments = (
        [{"name": "Http", "user_config": {"models": served}}]
        if layout == "one_hop"
        else [{"name": f"Model-{name}", "user_config": settings} for name, settings in served.items()]
    )
    arguments = {"layout": layout, "models": {name: {"num_cpus": 0.5} for name in served}, "http": {"num_cpus": 0.5}}
    with endpoint_of(tmp_path, bundles, arguments, deployments) as endpoint, endpoint.client() as client:
        assert [model.served_as for model in client.models().models] == ["sall", "deepmt"]
        first = client.grade(photograph())
        assert set(first.tasks) == {"dr", "amd"}
        seen = client.grade(photograph(), model="deepmt", explain="gmsv", lesions=True, enhance=True)
        assert set(seen.tasks) == {"dr"}
        assert seen.explanation is not None
        assert seen.explanation.method == "gmsv"
        assert seen.lesions is not None
        assert seen.enhanced is not None
        assert seen.model.hash == Bundle.load(bundles["deepmt"]).hash
        endpoint.command("promote", "sall", bundles["second"])
        second = Bundle.load(bundles["second"]).hash
        wait_for(lambda: client.grade(photograph()).model.hash == second)
        assert client.grade(photograph(), model="deepmt").model.hash == seen.model.hash
        assert [model.served_as for model in client.models().models] == ["sall", "deepmt"]
