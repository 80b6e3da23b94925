"""The same sentences hold for a folder, an S3 server process, that server behind a proxy, and a Ceph service."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.stores import Store, get_many, make_store
from cluster.stores.probe import check_writable, probe
from schemas import layout
from schemas.errors import KeyMissing, UnsafeName

STORES = ["posix", "s3", "s3 behind a proxy", pytest.param("radosgw", marks=pytest.mark.slow)]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "posix":
        return make_store(str(tmp_path / "lake"))
    bucket = request.getfixturevalue("radosgw_bucket" if request.param == "radosgw" else "moto_bucket")
    if request.param in ("s3", "radosgw"):
        return make_store(f"s3://{bucket}/lake")
    return make_store(f"s3://{bucket}/lake", endpoint=request.getfixturevalue("moto_proxy").url)


def test_an_object_is_read_back_as_written(store: Store) -> None:
    body = bytes(range(256)) * 5
    assert store.create("a/b/object.bin", body) is True
    assert store.get("a/b/object.bin") == body
    assert store.size("a/b/object.bin") == 1280
    assert store.exists("a/b/object.bin")
    assert store.create("a/b/empty", b"") is True
    assert store.get("a/b/empty") == b"" and store.size("a/b/empty") == 0


def test_a_second_create_is_refused_and_changes_nothing(store: Store) -> None:
    assert store.create("k", b"first") is True
    assert store.create("k", b"second") is False
    assert store.get("k") == b"first"


def test_replace_writes_whether_or_not_the_key_exists(store: Store) -> None:
    store.replace("runs/x/state.json", b"1")
    store.replace("runs/x/state.json", b"22")
    assert store.get("runs/x/state.json") == b"22"
    assert store.list("runs") == ["runs/x/state.json"]


def test_a_state_can_be_dropped_and_nothing_else(store: Store) -> None:
    state = layout.keep_key("0" * 20, 0, 7, "weights")
    store.replace(state, b"w")
    store.drop_state(state)
    store.drop_state(state)  # which is gone already
    assert not store.exists(state)
    with pytest.raises(UnsafeName, match="only those may be dropped"):
        store.drop_state(layout.published_key("0" * 20))


def test_what_is_deleted_is_gone_and_can_be_made_again(store: Store) -> None:
    store.create("tables/x/part", b"1")
    store.create("tables/x/part-2", b"2")
    store.delete("tables/x/part")
    store.delete("tables/x/part")  # which is gone already
    assert store.list("tables") == ["tables/x/part-2"] and not store.exists("tables/x/part")
    assert store.create("tables/x/part", b"3") is True and store.get("tables/x/part") == b"3"
    with pytest.raises(UnsafeName):
        store.delete("../outside")


def test_of_16_creates_at_once_exactly_one_wins_and_its_bytes_stay(store: Store) -> None:
    for round_ in range(3):
        barrier = threading.Barrier(16)

        def enter(number: int, key: str = f"race/{round_}", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return store.create(key, b"%02d" % number * 1000)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(enter, range(16)))
        assert sum(won) == 1
        assert store.get(f"race/{round_}") == b"%02d" % won.index(True) * 1000


def test_what_does_not_exist_is_key_missing_everywhere(store: Store) -> None:
    store.create("here/x", b"1")
    for call in (store.get, store.size, lambda key: store.get_range(key, 0, 1)):
        for key in ("not/here", "here", "here/x/below"):
            with pytest.raises(KeyMissing, match=key):
                call(key)
    assert not store.exists("not/here") and not store.exists("here") and not store.exists("here/x/below")
    assert store.list("not/here") == []


def test_a_range_is_the_slice_of_the_whole(store: Store) -> None:
    body = b"0123456789"
    store.create("k", body)
    for start in range(12):
        for length in (0, 1, 3, 20):
            assert store.get_range("k", start, length) == body[start : start + length]


def test_a_listing_is_sorted_recursive_and_ends_at_folder_names(store: Store) -> None:
    keys = ["a/2", "a/10", "a/b/c/deep", "ab/1", "a-1", "top", "a/Z"]
    for key in keys:
        store.create(key, b"x")
        assert key in store.list("")  # at once, in the same process
    assert store.list("") == sorted(keys)
    assert store.list("a") == store.list("a/") == ["a/10", "a/2", "a/Z", "a/b/c/deep"]
    assert store.list("a/b") == ["a/b/c/deep"]


@pytest.mark.parametrize("store", [STORES[0], STORES[1], STORES[3]], indirect=True)
def test_a_listing_of_more_than_a_page_is_whole(store: Store) -> None:
    keys = [f"many/{number:05d}" for number in range(1005)]  # an S3 page has 1000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.create(key, b""), keys))
    assert store.list("many") == keys


def test_unicode_spaces_and_url_signs_in_keys_mean_themselves(store: Store) -> None:
    keys = ["München/Straße 1.bin", "日本/🦊", "a b/c+d&e=f%20g#h?i", "m=x+y/s=00/part-0.parquet"]
    for key in keys:
        assert store.create(key, key.encode()) is True
        assert store.create(key, b"other") is False
        assert store.get(key) == key.encode()
        assert store.list(key.split("/")[0]) == [key]
    assert store.list("") == sorted(keys)


BAD_KEYS = ["", "/abs", "../up", "a/../../up", "a//b", "a/", "./a", ".hidden", "a/.tmp-1", "nul\0", "a\\b", "new\nline"]
BAD_KEYS += ["x" * 201, "/".join(["x" * 100] * 9), "lone\ud800"]


def test_a_key_that_could_leave_the_store_is_refused_before_any_write(store: Store, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    writes = (lambda key: store.create(key, b"x"), lambda key: store.replace(key, b"x"))
    for key in BAD_KEYS:
        for call in (store.get, store.size, store.exists, store.url, *writes):
            with pytest.raises(UnsafeName):
                call(key)
                pytest.fail(f"{key!r} was accepted")
    assert store.list("") == [] and sorted(tmp_path.rglob("*")) == before


def test_many_objects_come_in_order_and_several_at_a_time(store: Store) -> None:
    bodies = {f"many/{number:03d}": b"%d" % number * 100 for number in range(60)}
    for key, body in bodies.items():
        store.create(key, body)
    keys = list(reversed(bodies))
    assert list(get_many(store, keys, width=8)) == [(key, bodies[key]) for key in keys]
    with pytest.raises(KeyMissing, match="many/999"):
        list(get_many(store, ["many/000", "many/999", "many/001"]))


def test_many_threads_may_read_and_write_at_once(store: Store) -> None:
    def work(number: int) -> bool:
        body = hashlib.sha256(b"%d" % number).digest() * 500
        return store.create(f"t/{number}", body) and store.get(f"t/{number}") == body and store.exists(f"t/{number}")

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(work, range(100)))


def test_a_pickled_copy_reads_the_same_store(store: Store) -> None:
    store.create("k", b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get("k") == b"x" and copy.uri == store.uri


def test_a_forked_process_may_go_on_using_the_store(store: Store) -> None:
    store.create("before", b"parent")
    child = os.fork()
    if child == 0:  # nothing may escape from here, or pytest would run twice
        try:
            os._exit(0 if store.get("before") == b"parent" and store.create("after", b"child") else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 240
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert store.get("after") == b"child" and store.create("parent again", b"x")


def test_parquet_is_read_through_the_arrow_filesystem(store: Store) -> None:
    table = pa.table({"n": list(range(50_000)), "text": [f"row {n}" for n in range(50_000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10_000)
    store.create("tables/t/part-0.parquet", sink.getvalue().to_pybytes())
    filesystem, root = store.arrow_fs()
    assert pq.read_table(f"{root}/tables/t", filesystem=filesystem).equals(table)
    column = pq.ParquetFile(filesystem.open_input_file(f"{root}/tables/t/part-0.parquet")).read_row_group(3, ["n"])
    assert column["n"].to_pylist() == list(range(30_000, 40_000))


def test_duckdb_reads_the_urls(store: Store) -> None:
    import duckdb

    for part in range(3):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"n": [part * 10 + 1, part * 10 + 2]}), sink)
        store.create(f"tables/t/part-{part}.parquet", sink.getvalue().to_pybytes())
    connection = duckdb.connect()
    if (filesystem := store.fsspec_fs()) is not None:
        connection.register_filesystem(filesystem)
    urls = [store.url(key) for key in store.list("tables/t")]
    answer = connection.execute("select sum(n), count(*) from read_parquet(?)", [urls]).fetchone()
    assert answer == (1 + 2 + 11 + 12 + 21 + 22, 6)


def test_sizes_are_those_of_everything_that_is_listed(store: Store) -> None:
    for key, data in (("t/b/2", b"22"), ("t/b/1", b"1"), ("t/a", b""), ("u", b"666666")):
        store.create(key, data)
    assert list(store.sizes("t").items()) == [("t/a", 0), ("t/b/1", 1), ("t/b/2", 2)]
    assert store.sizes("t/b/") == {"t/b/1": 1, "t/b/2": 2} and store.sizes("nowhere") == {}


def test_the_probe_passes_and_its_race_has_one_winner(store: Store) -> None:
    checks = probe(store)
    assert [check.check for check in checks if not check.ok] == []
    assert {"create-only race", "list after write", "range read", "write and read back", "latency"} == {
        check.check for check in checks
    }
    check_writable(store)
    check_writable(store)  # as every run does, with one object for all
    assert len([key for key in store.list("probe") if key.count("/") == 1]) == 1


class ForgetfulStore:
    """A real folder store whose create overwrites, like an S3 service that ignores If-None-Match."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    def create(self, key: str, data: bytes) -> bool:
        self.inner.replace(key, data)
        return True

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_the_probe_finds_a_store_that_ignores_create_only(tmp_path: Path) -> None:
    checks = {check.check: check for check in probe(ForgetfulStore(make_store(str(tmp_path))))}
    assert not checks["create-only race"].ok and "16 won" in checks["create-only race"].detail
    assert checks["write and read back"].ok


WRITER = """
import hashlib, sys
from cluster.stores import make_store
store = make_store(sys.argv[1], sys.argv[2] or None)
for number in range(10_000):
    block = hashlib.sha256(f"{sys.argv[3]} {number}".encode()).digest()
    store.create(f"kill/{sys.argv[3]}/{number:05d}", block * 40_000)
    print("one", flush=True)
"""


def test_killing_a_writer_at_any_moment_leaves_only_whole_objects(store: Store, request: pytest.FixtureRequest) -> None:
    endpoint = "" if store.uri.startswith("/") else os.environ["AWS_ENDPOINT_URL"]
    if "proxy" in request.node.name:
        endpoint = request.getfixturevalue("moto_proxy").url
    pauses = [0.01, 0.03, 0.07] if endpoint else [0.001, 0.003, 0.01, 0.02, 0.04, 0.07]
    for attempt, pause in enumerate(pauses):
        arguments = [sys.executable, "-c", WRITER, store.uri, endpoint, str(attempt)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"one\n"
            time.sleep(pause)
            writer.kill()
    time.sleep(0.2)  # a server may still be finishing what it had received
    keys = store.list("kill")
    assert len({key.split("/")[1] for key in keys}) == len(pauses)
    for key, body in get_many(store, keys):
        _, attempt, number = key.split("/")
        assert body == hashlib.sha256(f"{attempt} {int(number)}".encode()).digest() * 40_000


@pytest.mark.slow
def test_70_megabytes_go_in_one_piece_and_stay_create_only(store: Store) -> None:
    body = os.urandom(70 * 2**20)
    assert store.create("large", body) is True
    assert store.create("large", body[::-1]) is False
    assert hashlib.sha256(store.get("large")).digest() == hashlib.sha256(body).digest()
    assert store.get_range("large", 60 * 2**20, 1000) == body[60 * 2**20 : 60 * 2**20 + 1000]
