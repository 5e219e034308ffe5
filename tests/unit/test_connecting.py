"""A cluster that is not there is said to be so, and soon."""

import time

import pytest
import ray

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.errors import ResourceError
from retina_ray.orchestration.ray_settings import connected
from serve_apps.local import free_port


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    begun = time.monotonic()
    address = f"{scheme}127.0.0.1:{free_port()}"
    with (
        pytest.raises(ResourceError, match=f"cannot reach the Ray cluster: {address} .*Connection refused"),
        connected(RuntimeConfig(address=address)),
    ):
        pass
    assert time.monotonic() - begun < 5
