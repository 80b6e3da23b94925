"""Starts and stops the server processes that tests talk to on loopback."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-7f3a",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def moto() -> Iterator[str]:
    """The URL of a fresh moto server process on loopback, empty, ended with the block."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    with process(command, {**os.environ, **CREDENTIALS}, ready_url=f"{url}/moto-api/"):
        yield url


@functools.cache
def plain_client(url: str) -> Any:
    """A boto3 client of the server: one that shares nothing with the code under test."""
    import boto3

    keys = {"aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"]}
    keys["aws_secret_access_key"] = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)


@contextmanager
def process(command: list[str], env: dict[str, str], ready_url: str | None = None) -> Iterator[subprocess.Popen]:
    """A server process that answers at `ready_url` when the block begins and is killed when it ends."""
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        if ready_url:
            _wait_until_ready(server, ready_url)
        yield server
    finally:
        server.kill()
        server.wait()


def _wait_until_ready(server: subprocess.Popen, url: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.returncode} before it answered at {url}")
        try:
            urllib.request.urlopen(url, timeout=30).close()
        except urllib.error.HTTPError:
            return  # it answers, which is all we want to know
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"no answer from {url} within {seconds} s")
