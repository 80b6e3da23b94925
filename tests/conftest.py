"""Fixtures shared by all tests: S3 server processes for the session, and the environment that reaches it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.chromium import pytest_runtest_setup, pytest_terminal_summary  # noqa: F401
from tests.faultproxy import FaultProxy
from tests.radosgw import radosgw, radosgw_root
from tests.servers import CREDENTIALS, moto, plain_client

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """The URL of a moto server process that lives as long as the session."""
    with moto() as url:
        yield url


@pytest.fixture(scope="session")
def moto_proxy(moto_url: str) -> Iterator[FaultProxy]:
    """A fault proxy in front of that server; it breaks nothing until a test says so."""
    with FaultProxy(moto_url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def radosgw_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Ceph S3 service that lives as long as the session; skips where Ceph is absent."""
    if radosgw_root() is None:
        pytest.skip("needs radosgw; python -m tests.radosgw FOLDER unpacks it")
    with radosgw(tmp_path_factory.mktemp("ceph")) as url:
        yield url


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Credentials that moto accepts, no endpoint, and the usual patience: a test about giving up states its own."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("MICLIP_STORE_BUDGET_S", raising=False)
    return monkeypatch


@pytest.fixture
def moto_bucket(moto_url: str, s3_environment: pytest.MonkeyPatch) -> str:
    """A bucket nobody else uses, on the session's server; AWS_ENDPOINT_URL leads there."""
    return _new_bucket(moto_url, s3_environment)


@pytest.fixture
def radosgw_bucket(radosgw_url: str, s3_environment: pytest.MonkeyPatch) -> str:
    """The same on the Ceph service."""
    return _new_bucket(radosgw_url, s3_environment)


def _new_bucket(url: str, environment: pytest.MonkeyPatch) -> str:
    environment.setenv("AWS_ENDPOINT_URL", url)
    bucket = f"bucket-{next(_NUMBERS)}"
    plain_client(url).create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The one Ray session of this process: 4 CPUs that may be shared, the smallest object store; `host:port` to join it."""
    import ray

    from cluster.on_ray.session import start_local

    start_local(cpus=4, object_store_bytes=80 << 20)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
