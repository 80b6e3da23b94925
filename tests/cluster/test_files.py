"""Reading the user's own files: the same sentences for local folders and for a bucket."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.files import Files
from cluster.stores import make_store
from schemas.errors import BadRef, BadSpec, KeyMissing, UnsafeName
from tests.faultproxy import FaultProxy, Rule
from tests.servers import plain_client

Put = Callable[[str, bytes], None]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Put]:
    """A base uri and a way to put files below it that is not the code under test."""
    if request.param == "local":

        def write(name: str, body: bytes) -> None:
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

        return f"{tmp_path}/photos", write
    bucket = request.getfixturevalue("moto_bucket")
    client = plain_client(request.getfixturevalue("moto_url"))
    return f"s3://{bucket}/photos", lambda name, body: client.put_object(Bucket=bucket, Key=f"photos/{name}", Body=body)


NAMES = [
    "b.jpg",
    "a/x.jpg",
    "a/y.png",
    "a/deep/er/z.jpg",
    "Straße 7/日本 🦊.jpg",
    "a/[odd].jpg",
    ".hidden.jpg",
    "a/.git/c.jpg",
]


def names(files: Files, where: str, base: str) -> list[str]:
    return [found.uri.removeprefix(base + "/") for found in files.list(where)]


def test_a_folder_is_listed_recursively_and_sorted_without_hidden_files(place: tuple[str, Put]) -> None:
    base, put = place
    for name in NAMES:
        put(name, b"x" * len(name))
    expected = sorted(NAMES[:6])
    for where in (base, base + "/"):
        assert names(Files(), where, base) == expected
    assert [found.size for found in Files().list(base)] == [len(name) for name in expected]
    assert names(Files(), f"{base}/a", base) == ["a/[odd].jpg", "a/deep/er/z.jpg", "a/x.jpg", "a/y.png"]
    assert names(Files(), f"{base}/b.jpg", base) == ["b.jpg"]


GLOBS = {
    "*.jpg": ["b.jpg"],
    "**/*.jpg": ["Straße 7/日本 🦊.jpg", "a/[odd].jpg", "a/deep/er/z.jpg", "a/x.jpg", "b.jpg"],
    "a/?.*": ["a/x.jpg", "a/y.png"],
    "a/[!x].*": ["a/y.png"],
    "a/[w-x].jpg": ["a/x.jpg"],
    "*/*.jpg": ["Straße 7/日本 🦊.jpg", "a/[odd].jpg", "a/x.jpg"],
    "a/**": ["a/[odd].jpg", "a/deep/er/z.jpg", "a/x.jpg", "a/y.png"],
    "a/[[]odd].jpg": ["a/[odd].jpg"],
    "**/d*/**/z.jpg": ["a/deep/er/z.jpg"],
    "Str*/*": ["Straße 7/日本 🦊.jpg"],
    "*.gif": [],
}


def test_globs_mean_what_shells_mean(place: tuple[str, Put]) -> None:
    base, put = place
    for name in NAMES:
        put(name, b"x")
    files = Files()
    assert {pattern: names(files, f"{base}/{pattern}", base) for pattern in GLOBS} == GLOBS


def test_files_are_read_whole_and_in_ranges(place: tuple[str, Put]) -> None:
    base, put = place
    put("Straße 7/日本 🦊.jpg", b"0123456789")
    files = pickle.loads(pickle.dumps(Files()))
    (found,) = files.list(base)
    assert files.read(found.uri) == b"0123456789"
    assert files.read_range(found.uri, 3, 4) == b"3456" and files.read_range(found.uri, 8, 99) == b"89"
    assert files.read_range(found.uri, 10, 5) == b""


def test_the_stamp_changes_with_the_content_and_only_then(place: tuple[str, Put]) -> None:
    base, put = place
    put("a.jpg", b"one")
    (before,) = Files().list(base)
    assert Files().list(base) == [before]
    put("a.jpg", b"two")
    (after,) = Files().list(base)
    assert before.stamp != after.stamp and before.size == after.size == 3


def test_a_file_that_vanished_is_key_missing_with_its_uri(place: tuple[str, Put]) -> None:
    base, put = place
    put("here.jpg", b"x")
    for call in (Files().read, lambda uri: Files().read_range(uri, 0, 1)):
        with pytest.raises(KeyMissing, match=r"gone\.jpg"):
            call(f"{base}/gone.jpg")
    assert Files().list(f"{base}/*.gone") == []


def test_a_missing_local_folder_is_named_and_a_missing_prefix_is_empty(tmp_path: Path, moto_bucket: str) -> None:
    with pytest.raises(KeyMissing, match="nowhere"):
        Files().list(f"{tmp_path}/nowhere")
    assert Files().list(f"s3://{moto_bucket}/nowhere") == []


@pytest.mark.parametrize("where", ["relative/path", "./x", "", "gs://bucket/x"])
def test_only_absolute_paths_and_s3_uris_are_places(where: str) -> None:
    with pytest.raises(BadRef, match="absolute path or s3"):
        Files().list(where)
    with pytest.raises(BadSpec):
        Files().list("s3://me:hunter2@bucket/x")


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.jpg").write_bytes(b"x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/class").symlink_to(tmp_path / "real")
    (tmp_path / "photos/again").symlink_to(tmp_path / "real")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "real/up").symlink_to(tmp_path)
    (tmp_path / "photos/one.jpg").symlink_to(tmp_path / "real/a.jpg")
    found = [file.uri for file in Files().list(f"{tmp_path}/photos")]
    assert found == [f"{tmp_path}/photos/again/a.jpg", f"{tmp_path}/photos/one.jpg"]


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing")
    with pytest.raises(KeyMissing, match=r"broken\.jpg"):
        Files().list(str(tmp_path))


def test_a_name_that_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg"))).write_bytes(b"x")
    with pytest.raises(UnsafeName, match="not valid UTF-8"):
        Files().list(str(tmp_path))


def test_what_is_neither_file_nor_folder_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.jpg").write_bytes(b"")
    assert [file.uri for file in Files().list(str(tmp_path))] == [f"{tmp_path}/a.jpg"]


def test_a_download_that_is_cut_is_never_a_short_image(moto_bucket: str, moto_proxy: FaultProxy) -> None:
    body = os.urandom(500_000)
    make_store(f"s3://{moto_bucket}").create("photos/a.jpg", body)
    files = Files(endpoint=moto_proxy.url)
    with moto_proxy.breaking(Rule("cut_body", method="GET", times=2)):
        assert files.read(f"s3://{moto_bucket}/photos/a.jpg") == body
    with moto_proxy.breaking(Rule("cut_body", method="GET", times=2)):
        assert files.read_range(f"s3://{moto_bucket}/photos/a.jpg", 9, 300_000) == body[9:300_009]
