"""Fixtures shared by all tests: one S3 server process for the session, and the environment that reaches it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.faultproxy import FaultProxy
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


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Credentials that moto accepts, no endpoint, and a short budget for faults."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "6")
    return monkeypatch


@pytest.fixture
def moto_bucket(moto_url: str, s3_environment: pytest.MonkeyPatch) -> str:
    """A bucket nobody else uses, on the session's server; AWS_ENDPOINT_URL leads there."""
    s3_environment.setenv("AWS_ENDPOINT_URL", moto_url)
    bucket = f"bucket-{next(_NUMBERS)}"
    plain_client(moto_url).create_bucket(Bucket=bucket)
    return bucket
