"""Checkpoints on this node: fetched once however many ask, whole or not at all, never outside the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cache import fetch_to_node
from jobs.protocol import FileInfo
from schemas.errors import UnknownModel, UnsafeName


class Bucket:
    """An image of a remote place: what is there, and how often each object was read."""

    def __init__(self, objects: dict[str, bytes], stamp: str = "1") -> None:
        self.objects = objects
        self.stamp = stamp
        self.reads: list[str] = []

    def list(self, location: str) -> list[FileInfo]:
        found = sorted(uri for uri in self.objects if uri == location or uri.startswith(location.rstrip("/") + "/"))
        return [FileInfo(uri, len(self.objects[uri]), self.stamp) for uri in found]

    def read(self, uri: str) -> bytes:
        self.reads.append(uri)
        return self.objects[uri]

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        return self.objects[uri][start : start + length]


MODEL = {"s3://lab/m/config.json": b"{}", "s3://lab/m/sub/model.safetensors": b"weights"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MICLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_local_path_is_used_where_it_is(tmp_path, cache):
    assert fetch_to_node(Bucket({}), f"file:{tmp_path}") == tmp_path
    assert not cache.exists()
    with pytest.raises(UnknownModel, match=r"nothing at .*none; expected a folder with weights"):
        fetch_to_node(Bucket({}), f"file:{tmp_path}/none")


def test_a_remote_folder_is_fetched_whole_and_only_once():
    bucket = Bucket(dict(MODEL))
    path = fetch_to_node(bucket, "s3://lab/m")
    assert {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} == {
        "config.json",
        "sub/model.safetensors",
    }
    assert (path / "sub" / "model.safetensors").read_bytes() == b"weights"
    assert fetch_to_node(bucket, "s3://lab/m/") == path
    assert sorted(bucket.reads) == sorted(MODEL)


def test_a_single_remote_file_is_given_as_that_file():
    path = fetch_to_node(Bucket(dict(MODEL)), "s3://lab/m/sub/model.safetensors")
    assert path.name == "model.safetensors" and path.read_bytes() == b"weights"


def test_changed_remote_files_are_fetched_anew():
    old = fetch_to_node(Bucket(dict(MODEL), stamp="1"), "s3://lab/m")
    new = fetch_to_node(Bucket({**MODEL, "s3://lab/m/config.json": b"{1}"}, stamp="2"), "s3://lab/m")
    assert old != new and (old / "config.json").read_bytes() == b"{}" and (new / "config.json").read_bytes() == b"{1}"


def test_nothing_there_is_an_unknown_model():
    with pytest.raises(UnknownModel, match="s3://lab/x: nothing there"):
        fetch_to_node(Bucket(dict(MODEL)), "s3://lab/x")


def test_a_fetch_that_breaks_off_leaves_nothing_behind_and_the_next_one_is_whole(cache):
    class Broken(Bucket):
        def read(self, uri: str) -> bytes:
            if uri.endswith("safetensors"):
                raise ConnectionError("gone")
            return super().read(uri)

    with pytest.raises(ConnectionError):
        fetch_to_node(Broken(dict(MODEL)), "s3://lab/m")
    assert [p for p in (cache / "checkpoints").iterdir() if p.is_dir()] == []
    path = fetch_to_node(Bucket(dict(MODEL)), "s3://lab/m")
    assert (path / "sub" / "model.safetensors").read_bytes() == b"weights"


def test_an_object_whose_name_climbs_out_of_the_cache_is_refused(tmp_path):
    with pytest.raises(UnsafeName, match="outside the cache"):
        fetch_to_node(Bucket({"s3://lab/m/../../../../escaped": b"x"}), "s3://lab/m")
    assert not list(tmp_path.rglob("escaped"))


CHILD = """
import sys, time
from pathlib import Path
from cluster.cache import fetch_to_node
from jobs.protocol import FileInfo

class Slow:
    def list(self, location):
        return [FileInfo(location + "/weights", 1, "1")]
    def read(self, uri):
        with open(sys.argv[1], "a") as log:
            log.write("read\\n")
        time.sleep(0.5)
        return b"w"

print("ready", flush=True)
sys.stdin.readline()
print((fetch_to_node(Slow(), "s3://lab/big") / "weights").read_bytes(), flush=True)
"""


def test_processes_of_one_node_fetch_a_checkpoint_once(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", CHILD, str(log)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, env=dict(os.environ), **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate(timeout=300)[0] for child in children] == ["b'w'\n"] * 3
    assert log.read_text() == "read\n"
