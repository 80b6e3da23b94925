"""The token that opens a local cluster is its owner's alone."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from cluster.on_ray.session import keep_token_private, start_local, token_path
from schemas.errors import ClusterUnreachable


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return tmp_path


def test_a_new_token_is_long_and_private_whatever_the_umask(home: Path) -> None:
    umask = os.umask(0)
    try:
        keep_token_private()
    finally:
        os.umask(umask)
    assert token_path() == home / ".ray" / "auth_token"
    assert token_path().stat().st_mode & 0o777 == 0o600
    assert len(token_path().read_text()) == 64
    assert os.listdir(home / ".ray") == ["auth_token"]


def test_a_token_that_others_could_read_is_closed_and_kept(home: Path) -> None:
    token_path().parent.mkdir()
    token_path().write_text("theirs")
    token_path().chmod(0o644)
    keep_token_private()
    assert token_path().stat().st_mode & 0o777 == 0o600
    assert token_path().read_text() == "theirs"


def test_starts_at_the_same_time_agree_on_one_token(home: Path) -> None:
    def read(_: int) -> str:
        keep_token_private()
        return token_path().read_text()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(read, range(32)))) == 1


def test_a_token_from_the_environment_writes_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    keep_token_private()
    assert not (home / ".ray").exists()


def test_a_machine_on_which_ray_does_not_start_is_told_in_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(ClusterUnreachable, match=r"^Ray did not start on this machine: The current node .*serial$"):
        start_local(1)
