"""The folder store: durability by temporary file and link, full disks, permissions, symlinks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.stores import make_store, posix
from cluster.stores.probe import check_writable
from schemas.errors import BadSpec, StoreDenied, StoreFull, StoreMissing, StoreUnreachable, UnsafeName


def test_the_uri_is_the_absolute_folder_and_nothing_is_made_before_the_first_write(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = make_store("lake/here")
    assert store.uri == f"{tmp_path}/lake/here"
    assert store.list("") == [] and not (tmp_path / "lake").exists()
    assert make_store(f"file://{tmp_path}/x").uri == f"{tmp_path}/x"
    store.create("a/b", b"x")
    assert (tmp_path / "lake/here/a/b").read_bytes() == b"x" and store.url("a/b") == f"{tmp_path}/lake/here/a/b"


@pytest.mark.parametrize("uri", ["gs://bucket/x", "", "http://host/x", "a\0b"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(BadSpec, match="store"):
        make_store(uri)


def test_leftovers_of_a_killed_writer_are_invisible_and_harmless(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    store.create("t/real", b"x")
    (tmp_path / "t/.tmp-0123").write_bytes(b"half")
    assert store.list("") == ["t/real"]
    assert store.create("t/other", b"y") is True and store.list("t") == ["t/other", "t/real"]


def test_no_temporary_file_stays_after_a_write(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    store.create("k", b"x")
    store.create("k", b"y")
    store.replace("k", b"z")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["k"]


def test_folders_that_nothing_is_left_in_go_with_their_last_object(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "lake"))
    for key in ("a/b/c/one", "a/b/two", "d/three"):
        store.create(key, b"x")
    store.delete("a/b/c/one")
    assert not (tmp_path / "lake/a/b/c").exists() and store.get("a/b/two") == b"x"
    store.delete("a/b/two")
    store.delete("d/three")
    assert list((tmp_path / "lake").iterdir()) == []  # and the store itself stays


def test_a_folder_that_others_remove_as_empty_while_we_write_is_made_again(tmp_path: Path, monkeypatch) -> None:
    store = make_store(str(tmp_path))
    make, removed = posix._make_folder, []

    def make_and_lose(folder: str) -> None:
        make(folder)
        if folder.endswith("a/b") and len(removed) < 3:
            os.rmdir(folder)
            removed.append(folder)

    monkeypatch.setattr(posix, "_make_folder", make_and_lose)
    assert store.create("a/b/c", b"x") is True
    assert len(removed) == 3 and store.get("a/b/c") == b"x"


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        make_store(str(tmp_path)).create("k", b"x")
    finally:
        os.umask(previous)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o640


def test_symlinks_that_lead_out_are_refused_before_any_write(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "lake"
    root.mkdir()
    (root / "door").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "new").symlink_to(outside / "does-not-exist")
    store = make_store(str(root))
    for key in ("door/x", "door/deep/x", "file", "new", "door/secret"):
        for call in (lambda k: store.create(k, b"x"), lambda k: store.replace(k, b"x"), store.get, store.exists):
            with pytest.raises(UnsafeName, match="leads out of the store"):
                call(key)
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret" and store.list("") == []


def test_a_root_that_is_itself_a_symlink_is_fine(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "lake").symlink_to(tmp_path / "disk")
    store = make_store(str(tmp_path / "lake"))
    assert store.create("a/b", b"x") and store.list("") == ["a/b"] and (tmp_path / "disk/a/b").exists()


def test_below_an_object_nothing_can_lie(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    store.create("a", b"x")
    with pytest.raises(UnsafeName, match="itself an object"):
        store.create("a/b", b"y")
    store.create("folder/x", b"")
    assert store.create("folder", b"y") is False


class Stumbling:
    """fsync of a disk that fails its first `times` calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: float, number: int = errno.EIO) -> None:
        self.calls, self.times, self._number, self._fsync = 0, times, number, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self._number, os.strerror(self._number))
        self._fsync(descriptor)


def test_a_disk_that_stumbles_is_tried_again_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(str(tmp_path))
    Stumbling(monkeypatch, 2)
    assert store.create("k", b"x") is True
    assert store.retries == 2 and store.get("k") == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_a_disk_that_fails_for_ever_is_unreachable_and_each_later_call_has_one_attempt_until_it_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "0.5")
    store = make_store(str(tmp_path))
    disk = Stumbling(monkeypatch, 1e9)
    for attempts in (None, 1, 1):
        disk.calls = 0
        with pytest.raises(StoreUnreachable, match=r"Input/output error; the file system failed"):
            store.create("k", b"x")
        assert attempts in (None, disk.calls)
    assert store.list("") == []
    disk.times = 0
    assert store.create("k", b"x") is True and not store.given_up


def test_an_error_that_waiting_does_not_cure_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(str(tmp_path))
    for number, error in ((errno.EINVAL, StoreUnreachable), (errno.ENOSPC, StoreFull), (errno.EROFS, StoreDenied)):
        disk = Stumbling(monkeypatch, 1e9, number)
        with pytest.raises(error):
            store.create("k", b"x")
        assert disk.calls == 1
    assert store.retries == 0


IN_A_CHILD = """
import os, sys
from cluster.stores import make_store, posix
from schemas.errors import MiclipError
store = make_store(sys.argv[1])
exec(sys.argv[2])
for number in range(3):
    try:
        print(store.create(f"t/{number}", bytes(int(sys.argv[3]))))
    except MiclipError as error:
        print(type(error).__name__, error)
"""


def in_a_child(root: Path, setup: str, size: int) -> list[str]:
    command = [sys.executable, "-c", IN_A_CHILD, str(root), setup, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_file_size_limit_is_store_full_with_path_and_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    lines = in_a_child(tmp_path, limit, 100_001)
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert line.startswith(f"StoreFull {tmp_path}/t/{number}: File too large; 100,001 bytes were needed")
    assert list((tmp_path / "t").iterdir()) == []
    assert in_a_child(tmp_path, limit, 100_000) == ["True"] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_is_store_full_and_the_objects_before_stay(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        lines = in_a_child(tmp_path, "", 30_000)
        assert lines[0] == "True"
        assert lines[-1].startswith(f"StoreFull {tmp_path}/t/2: No space left on device; 30,000 bytes were needed")
        assert sorted(make_store(str(tmp_path)).list("")) == [f"t/{n}" for n in range(lines.count("True"))]
        assert len(list((tmp_path / "t").iterdir())) == lines.count("True")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_one_may_not_write_is_denied_with_its_path(tmp_path: Path) -> None:
    drop = "os.setgroups([]); os.setgid(65534); os.setuid(65534)" if os.geteuid() == 0 else ""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for parent in [tmp_path, *tmp_path.parents]:  # the unprivileged child must reach the folder
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    lines = in_a_child(locked, drop, 10)
    assert [line.split(":")[0] for line in lines] == [f"StoreDenied {locked}/t/{number}" for number in range(3)]
    assert "Permission denied" in lines[0] and list(locked.iterdir()) == []


@pytest.mark.parametrize("place", ["/dev/full", "/proc/lake"])
def test_a_place_that_cannot_be_a_folder_fails_the_preflight(place: str) -> None:
    with pytest.raises(StoreMissing, match=place):
        check_writable(make_store(place))
