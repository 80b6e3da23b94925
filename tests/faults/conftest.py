"""Places to break things in: a folder, and a bucket of a real S3 server process that is reached through the fault proxy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faultproxy import FaultProxy


@dataclass(frozen=True)
class Place:
    """Where the stores of one test lie, and the proxy on the way to it, if there is one."""

    root: str
    proxy: FaultProxy | None = None

    def store(self, name: str) -> str:
        """The uri of a store of that name."""
        return f"{self.root}/{name}"


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Both places in turn."""
    if request.param == "folder":
        yield Place(str(tmp_path))
        return
    yield from _make_bucket(request)


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The bucket alone, for faults that only a network has."""
    yield from _make_bucket(request)


def _make_bucket(request: pytest.FixtureRequest) -> Iterator[Place]:
    name = request.getfixturevalue("moto_bucket")
    proxy = request.getfixturevalue("moto_proxy")
    environment = request.getfixturevalue("monkeypatch")
    environment.setenv("AWS_ENDPOINT_URL", proxy.url)
    with proxy.breaking():
        yield Place(f"s3://{name}", proxy)
