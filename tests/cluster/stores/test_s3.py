"""The S3 store under faults: a real server process behind a proxy that breaks chosen requests."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.stores import Store, make_store
from cluster.stores.base import BUDGET_S
from cluster.stores.probe import check_writable, probe
from cluster.stores.s3 import split_s3
from schemas.errors import BadSpec, StoreDenied, StoreFull, StoreMissing, StoreUnreachable, UnsafeName, UsageError
from tests.faultproxy import FaultProxy, Rule
from tests.servers import free_port, plain_client


@pytest.fixture
def store(moto_bucket: str, moto_proxy: FaultProxy) -> Store:
    return make_store(f"s3://{moto_bucket}/lake", endpoint=moto_proxy.url)


@pytest.fixture
def hasty(moto_bucket: str, moto_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same store with a budget of 2 s, for faults that never end."""
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "2")
    return make_store(f"s3://{moto_bucket}/lake", endpoint=moto_proxy.url)


def seen_by_server(moto_url: str, store: Store) -> dict[str, bytes]:
    """What the server holds, asked by a client that is not ours and not through the proxy."""
    client = plain_client(moto_url)
    bucket = store.uri.split("/")[2]
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


BURSTS = [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable"), (429, "Throttling"), (502, "")]


@pytest.mark.parametrize(("status", "code"), BURSTS)
def test_a_burst_of_three_busy_answers_is_waited_out_and_counted(
    store: Store, moto_proxy: FaultProxy, status: int, code: str
) -> None:
    with moto_proxy.breaking(Rule("status", times=3, status=status, code=code)):
        assert store.create("k", b"x") is True
    assert store.retries == 3
    assert [action for _, _, action in moto_proxy.log] == ["status"] * 3 + ["forward"]


def test_every_operation_waits_out_a_burst(store: Store, moto_proxy: FaultProxy) -> None:
    store.create("k", b"x")
    for call in (lambda: store.get("k"), lambda: store.size("k"), lambda: store.list(""), lambda: store.exists("k")):
        with moto_proxy.breaking(Rule("status", times=2)):
            assert call()
    assert store.retries == 4 * 2


def test_closed_connections_are_tried_again(store: Store, moto_proxy: FaultProxy) -> None:
    with moto_proxy.breaking(Rule("reset", times=3)):
        assert store.create("k", b"x") is True
    assert 1 <= store.retries <= 3 and store.get("k") == b"x"  # the HTTP library may reconnect once by itself


@pytest.mark.parametrize("fault", ["status", "reset", "hang"])
def test_a_store_down_for_ever_ends_within_its_budget_and_says_so(
    hasty: Store, moto_proxy: FaultProxy, moto_url: str, fault: str
) -> None:
    begun = time.monotonic()
    with (
        moto_proxy.breaking(Rule(fault, times=1e9)),  # type: ignore[arg-type]
        pytest.raises(StoreUnreachable, match=r"budget is 2 s, MICLIP_STORE_BUDGET_S") as caught,
    ):
        hasty.create("k", b"x")
    assert (
        0.5 < time.monotonic() - begun < BUDGET_S / 2
    )  # 2 s and a third, on a machine that is slow; not the usual patience
    assert f"{hasty.uri}/k" in str(caught.value) and moto_proxy.url in str(caught.value)
    assert 2 <= len(moto_proxy.log) <= 20  # patient, yet no storm
    assert seen_by_server(moto_url, hasty) == {}


def test_after_a_spent_budget_every_request_has_one_attempt_until_the_store_answers(
    store: Store, moto_proxy: FaultProxy
) -> None:
    """The budget is small, but an answer may take as long as it does elsewhere."""
    store.fsspec_fs().budget = 2.0
    with moto_proxy.breaking(Rule("status", times=1e9)):
        for attempts in (None, 1, 1):
            del moto_proxy.log[:]
            with pytest.raises(StoreUnreachable):
                store.create("k", b"x")
            assert attempts in (None, len(moto_proxy.log))
    assert store.exists("k") is False  # an answer; patience is back
    store.fsspec_fs().budget = BUDGET_S
    with moto_proxy.breaking(Rule("status", times=2)):
        assert store.create("k", b"x") is True


def test_nobody_listening_is_unreachable(moto_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "1")
    store = make_store(f"s3://{moto_bucket}", endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnreachable, match="MICLIP_STORE_BUDGET_S"):
        store.exists("k")
    assert [check.ok for check in probe(store)] == [False]


def test_a_hanging_request_is_given_up_and_sent_again(
    moto_bucket: str, moto_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a third of the budget."""
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "6")
    store = make_store(f"s3://{moto_bucket}/lake", endpoint=moto_proxy.url)
    with moto_proxy.breaking(Rule("hang", seconds=3600)):
        begun = time.monotonic()
        assert store.create("k", b"x") is True
        assert time.monotonic() - begun >= 2
    with moto_proxy.breaking(Rule("hang", method="GET", seconds=3600)):
        assert store.get("k") == b"x"
    assert store.retries >= 2


def test_a_slow_answer_within_the_timeout_is_no_fault(store: Store, moto_proxy: FaultProxy) -> None:
    with moto_proxy.breaking(Rule("delay", seconds=0.5)):
        assert store.create("k", b"x") is True
    assert store.retries == 0


def test_certificates_are_loaded_once_however_slowly_and_no_request_is_given_up_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes three times what counts as silence, as on a machine with too much to do, and 24 threads begin at once."""
    store.fsspec_fs().silence = 0.5
    load, loads = ssl.SSLContext.load_verify_locations, []

    def slowly(self: ssl.SSLContext, *arguments: object) -> None:
        loads.append(self)
        time.sleep(1.5)
        load(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", slowly)
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(store.exists, ["k"] * 24)) == [False] * 24
    assert len(loads) == 1


def test_after_a_lost_answer_create_says_false_and_the_object_is_ours(store: Store, moto_proxy: FaultProxy) -> None:
    with moto_proxy.breaking(Rule("lose_answer", method="PUT")):
        assert store.create("k", b"mine") is False
    assert store.get("k") == b"mine"
    with moto_proxy.breaking(Rule("lose_answer", method="PUT")):
        check_writable(store)  # reads back, and so is content
        store.replace("state", b"2")
    assert store.get("state") == b"2"


def test_a_conflict_that_the_server_wants_retried_is_retried(store: Store, moto_proxy: FaultProxy) -> None:
    with moto_proxy.breaking(Rule("status", status=409, code="ConditionalRequestConflict", times=2)):
        assert store.create("k", b"x") is True
    with moto_proxy.breaking(Rule("status", method="PUT", status=409, code="KeyAlreadyExists")):
        assert store.create("k", b"y") is False
    with (
        moto_proxy.breaking(Rule("status", method="PUT", status=409, code="SomethingElse")),
        pytest.raises(StoreDenied, match="409 SomethingElse"),
    ):
        store.create("free", b"y")


def test_a_download_cut_in_the_middle_is_fetched_again_and_never_short(
    store: Store, hasty: Store, moto_proxy: FaultProxy
) -> None:
    body = os.urandom(3_000_000)
    store.create("k", body)
    with moto_proxy.breaking(Rule("cut_body", method="GET", times=2)):
        assert store.get("k") == body
    with moto_proxy.breaking(Rule("cut_body", method="GET", times=2)):
        assert store.get_range("k", 1000, 1_000_000) == body[1000:1_001_000]
    assert store.retries == 4
    with moto_proxy.breaking(Rule("cut_body", method="GET", times=1e9)), pytest.raises(StoreUnreachable):
        hasty.get("k")


def test_a_listing_cut_in_the_middle_is_never_short(store: Store, moto_proxy: FaultProxy) -> None:
    keys = [f"k{number}" for number in range(30)]
    for key in keys:
        store.create(key, b"x")
    with moto_proxy.breaking(Rule("cut_body", method="GET"), Rule("status", method="GET")):
        assert store.list("") == sorted(keys)
    assert store.retries == 2


def test_parquet_read_through_arrow_and_duckdb_survives_faults(store: Store, moto_proxy: FaultProxy) -> None:
    import duckdb

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": list(range(300_000))}), sink, row_group_size=50_000)
    store.create("t/part.parquet", sink.getvalue().to_pybytes())
    filesystem, root = store.arrow_fs()
    faults = [Rule("cut_body", method="GET", path="part", first=2, times=2), Rule("status", times=2), Rule("reset")]
    with moto_proxy.breaking(*faults):
        assert pq.read_table(f"{root}/t/part.parquet", filesystem=filesystem)["n"].to_pylist() == list(range(300_000))
    assert [rule.fired for rule in faults] == [2, 2, 1] and store.retries in (4, 5)
    connection = duckdb.connect()
    connection.register_filesystem(store.fsspec_fs())
    faults = [Rule("cut_body", method="GET", path="part", first=2, times=2), Rule("status", times=2), Rule("reset")]
    with moto_proxy.breaking(*faults):
        total = connection.execute("select sum(n) from read_parquet(?)", [store.url("t/part.parquet")]).fetchone()
    assert total == (300_000 * 299_999 // 2,) and [rule.fired for rule in faults] == [2, 2, 1]


def test_a_torn_upload_leaves_no_object_and_is_sent_again(
    store: Store, hasty: Store, moto_proxy: FaultProxy, moto_url: str
) -> None:
    body = os.urandom(2_000_000)
    with (
        moto_proxy.breaking(Rule("tear_upload", method="PUT", times=1e9)),
        pytest.raises(StoreUnreachable),
    ):
        hasty.create("never", body)
    assert seen_by_server(moto_url, store) == {}
    with moto_proxy.breaking(Rule("tear_upload", method="PUT", times=2)):
        assert store.create("k", body) is True
    assert seen_by_server(moto_url, store) == {"lake/k": body}


def test_an_object_is_always_one_put(store: Store, moto_proxy: FaultProxy) -> None:
    with moto_proxy.breaking():
        store.create("k", bytes(12 * 2**20))
    assert [(method, action) for method, _, action in moto_proxy.log] == [("PUT", "forward")]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (401, ""),
        (400, "ExpiredToken"),
    ],
)
def test_refused_credentials_are_one_sentence_after_one_request(
    store: Store, moto_proxy: FaultProxy, status: int, code: str
) -> None:
    for call in (lambda: store.create("k", b""), lambda: store.get("k"), lambda: store.list(""), lambda: probe(store)):
        with moto_proxy.breaking(Rule("status", times=1e9, status=status, code=code)):
            if isinstance(answer := _caught(call), StoreDenied):
                assert f"{status} {code}".strip() in str(answer) and "credentials" in str(answer)
            else:
                assert [check.ok for check in answer] == [False]
        assert len(moto_proxy.log) == 1
    assert store.retries == 0


def _caught(call) -> object:
    try:
        return call()
    except StoreDenied as error:
        return error


@pytest.mark.slow
def test_a_wrong_secret_is_denied_by_a_service_that_checks_it(
    radosgw_bucket: str, radosgw_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(radosgw_url) as proxy:
        make_store(f"s3://{radosgw_bucket}", endpoint=proxy.url).create("k", b"signed and forwarded")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-9c1d")
        store = make_store(f"s3://{radosgw_bucket}", endpoint=proxy.url)
        for call in (
            store.get,
            store.list,
            store.exists,
            lambda key: store.create(key, b""),
            lambda _: check_writable(store),
        ):
            with proxy.breaking(), pytest.raises(StoreDenied, match=r"403.*check the credentials") as caught:
                call("k")
            assert len(proxy.log) == 1 and "wrong-secret" not in str(caught.value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        with pytest.raises(StoreDenied, match="InvalidAccessKeyId"):
            check_writable(make_store(f"s3://{radosgw_bucket}"))


@pytest.mark.slow
def test_a_lost_answer_and_a_torn_upload_on_a_real_service(radosgw_bucket: str, radosgw_url: str) -> None:
    body = os.urandom(3_000_000)
    with FaultProxy(radosgw_url) as proxy:
        store = make_store(f"s3://{radosgw_bucket}", endpoint=proxy.url)
        with proxy.breaking(Rule("lose_answer", method="PUT")):
            assert store.create("k", body) is False
        with proxy.breaking(Rule("tear_upload", method="PUT", times=3)):
            assert store.create("torn", body) is True
        with proxy.breaking(Rule("cut_body", method="GET", times=3)):
            assert store.get("torn") == store.get("k") == body
        assert store.list("") == ["k", "torn"]


def test_without_credentials_the_store_is_denied_at_once(store: Store, moto_proxy: FaultProxy, monkeypatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with moto_proxy.breaking(), pytest.raises(StoreDenied, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        check_writable(store)
    assert moto_proxy.log == [] and store.retries == 0


def test_a_missing_bucket_is_one_sentence_whatever_is_asked(moto_bucket: str, moto_url: str) -> None:
    store = make_store("s3://no-such-bucket-here/lake")
    calls = (store.get, store.exists, store.size, store.list, lambda key: store.create(key, b""))
    for call in calls:
        with pytest.raises(StoreMissing, match=r"there is no such bucket at http.*create it or correct the uri"):
            call("k")
    with pytest.raises(StoreMissing):
        check_writable(store)


def test_a_full_service_is_store_full_with_the_bytes_needed(store: Store, moto_proxy: FaultProxy) -> None:
    with (
        moto_proxy.breaking(Rule("status", status=403, code="QuotaExceeded")),
        pytest.raises(StoreFull, match=r"12,345 bytes were needed"),
    ):
        store.create("k", bytes(12_345))


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://user:hunter2@bucket/x", "s3://b", "s3://bad bucket/x"])
def test_a_uri_that_names_no_bucket_or_holds_credentials_is_refused(uri: str) -> None:
    with pytest.raises(BadSpec) as caught:
        make_store(uri)
    assert "hunter2" not in str(caught.value)


def test_a_prefix_follows_the_rule_of_keys() -> None:
    with pytest.raises(UnsafeName):
        make_store("s3://bucket/a/../b")
    assert make_store("s3://bucket/a/b/").uri == "s3://bucket/a/b"
    assert make_store("s3://bucket").url("k/x") == "s3://bucket/k/x"
    assert split_s3("s3://bucket/a b/ü?x#y") == ("bucket", "a b/ü?x#y")


def test_bad_settings_in_the_environment_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "soon")
    with pytest.raises(UsageError, match="MICLIP_STORE_BUDGET_S is 'soon'"):
        make_store("s3://bucket/x")
    monkeypatch.delenv("MICLIP_STORE_BUDGET_S")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@host")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL") as caught:
        make_store("s3://bucket/x")
    assert "hunter2" not in str(caught.value)


def test_two_stores_with_one_bucket_and_two_prefixes_do_not_see_each_other(moto_bucket: str) -> None:
    one, two = make_store(f"s3://{moto_bucket}/a"), make_store(f"s3://{moto_bucket}/ab")
    one.create("k", b"1")
    assert two.list("") == [] and not two.exists("k") and one.list("") == ["k"]


def test_faults_from_many_threads_at_once_lose_nothing(store: Store, moto_proxy: FaultProxy) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            store.create(f"t/{number}", b"%d" % number * 1000)
            assert store.get(f"t/{number}") == b"%d" % number * 1000
        except BaseException as error:  # a thread's failure must reach the test
            errors.append(error)

    rules = [Rule("status", first=start, times=2) for start in range(5, 60, 9)]
    rules += [Rule("lose_answer", method="PUT", first=start) for start in (2, 11, 17)]
    rules += [Rule("cut_body", method="GET", first=start) for start in (3, 8, 21)]
    with moto_proxy.breaking(*rules):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == [] and len(store.list("t")) == 40 and store.retries > 10


def test_neither_s3fs_nor_botocore_is_loaded_for_a_folder() -> None:
    code = "import sys, cluster.stores.probe; cluster.stores.make_store('/tmp'); print({'s3fs', 'botocore'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
