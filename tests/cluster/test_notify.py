"""A webhook is told what a person wants to know, tried again while it is busy, and never given or shown a secret."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cluster.changes import Change, Changes
from cluster.notify import ATTEMPTS, Notice, make_held_notice, make_notice, post
from cluster.runs import RunState

STATE = RunState(run="zoo-00007", pipeline="zoo", number=7, status="FAILED", seconds=75.0)
CHANGES = Changes(
    run="zoo-00007",
    before="zoo-00006",
    unchanged=3,
    subjects=(
        Change(subject="demo:clip-p8", change="changed", cells=("acts",), why=("weights",)),
        Change(subject="demo:clip-rn", change="failed", cells=("acts",), why=("gone",)),
    ),
)


@contextmanager
def listener(*answers: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that gives these answers one after the other, the last one for ever; and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers[min(len(told), len(answers)) - 1])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook/T0PSECRET", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def notice(*failures: str, store: str = "/lake") -> Notice:
    return make_notice(store, "zoo", STATE, CHANGES, 1, failures)


def test_a_notice_says_how_it_went_what_changed_and_what_failed() -> None:
    found = notice("acts/demo:clip-rn activations: shard 3: gone")
    assert found.text.splitlines() == [
        "zoo-00007: FAILED in 1m15s",
        "changed: demo:clip-p8",
        "failed: demo:clip-rn",
        "- acts/demo:clip-rn activations: shard 3: gone",
    ]
    assert found.changes == {"changed": ("demo:clip-p8",), "failed": ("demo:clip-rn",)} and found.exit_code == 1
    assert found.is_news and not make_notice("/lake", "zoo", STATE, None, 0).is_news
    once, again = (make_held_notice("/lake", "zoo", ("host holds the lease",), times) for times in (1, 2))
    assert once.text == "zoo: HELD\nhost holds the lease" and not once.is_news and again.is_news and again.is_bad
    assert make_notice("/lake", "zoo", None, None, 3, ("StoreUnreachable: away",)).status == "NOT STARTED"
    died = make_notice("/lake", "zoo", None, None, 3, status="STOPPED", run="zoo-00007")
    assert (died.text, died.run, died.status) == ("zoo-00007: STOPPED", "zoo-00007", "STOPPED")


def test_many_failures_are_counted_not_listed() -> None:
    found = notice(*(f"failure {number}" for number in range(25)))
    assert len(found.failures) == 10 and found.text.splitlines()[-1] == "and 15 failures more"


def test_what_is_told_arrives_as_json() -> None:
    with listener(200) as (url, told):
        assert post(url, notice("broken")) is None
    (message,) = told
    assert message["run"] == "zoo-00007" and message["text"].endswith("- broken")
    assert message["changes"] == {"changed": ["demo:clip-p8"], "failed": ["demo:clip-rn"]}


def test_a_busy_listener_is_asked_again_with_growing_pauses() -> None:
    pauses: list[float] = []
    with listener(503, 429, 204) as (url, told):
        assert post(url, notice(), pauses.append) is None
    assert len(told) == 3 and pauses == [1.0, 2.0]


@pytest.mark.parametrize(("answer", "asked"), [(500, ATTEMPTS), (404, 1), (403, 1)])
def test_one_that_refuses_is_a_sentence_without_the_url(answer: int, asked: int) -> None:
    with listener(answer) as (url, told):
        said = post(url, notice(), lambda _: None)
    assert said == f"the webhook at 127.0.0.1 was not told: it answered {answer}" and len(told) == asked


def test_a_listener_that_is_not_there_is_a_sentence_too() -> None:
    with listener(200) as (url, _):
        pass
    said = post(url, notice(), lambda _: None)
    assert said is not None and "ConnectionRefusedError" in said and "T0PSECRET" not in said
    for wrong in ("file:///etc/passwd", "hooks.example/T0PSECRET", ""):
        said = post(wrong, notice())
        assert said == "the webhook must be an http or https url (--webhook or MICLIP_WEBHOOK)"


@contextmanager
def no_http() -> Iterator[str]:
    """A listener that speaks, but no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.recv(1 << 16)
                        connection.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/T0PSECRET"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_an_answer_that_is_no_http_is_a_sentence_too() -> None:
    with no_http() as url:
        assert post(url, notice(), lambda _: None) == "the webhook at 127.0.0.1 was not told: BadStatusLine"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1/T0P SECRET", "the webhook at 127.0.0.1 was not told: InvalidURL"),
        ("http://127.0.0.1:80x/T0PSECRET", "the webhook must be an http or https url (--webhook or MICLIP_WEBHOOK)"),
        ("http://[::1/T0PSECRET", "the webhook must be an http or https url (--webhook or MICLIP_WEBHOOK)"),
    ],
)
def test_a_url_that_cannot_be_is_a_sentence_without_it_and_not_tried_again(url: str, said: str) -> None:
    pauses: list[float] = []
    assert post(url, notice(), pauses.append) == said and pauses == []


def test_a_url_from_a_file_may_end_with_a_new_line() -> None:
    with listener(200) as (url, told):
        assert post(f"{url}\n", notice()) is None
    assert len(told) == 1


@contextmanager
def silence(trickle: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A listener that takes what it is told and never answers, or goes on answering for ever."""
    told: list[bytes] = []
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while not ended.is_set():
                with server.accept()[0] as connection:
                    told.append(connection.recv(1 << 16))
                    with suppress(OSError):
                        connection.sendall(b"HTTP/1.1 200 OK\r\n" if trickle else b"")
                        while not ended.wait(0.02):
                            connection.sendall(trickle)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/hook", told
        finally:
            ended.set()
            socket.create_connection(server.getsockname()).close()
            thread.join()


@pytest.mark.parametrize("trickle", [b"", b"X-Wait: yes\r\n"])
def test_who_was_told_to_end_waits_once_and_no_longer_however_a_listener_holds_it_up(
    trickle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.notify.HASTY", 0.3)
    with silence(trickle) as (url, told):
        assert post(url, notice(), hasty=True) == "the webhook at 127.0.0.1 was not told: TimeoutError"
    assert len([text for text in told if text]) == 1


def test_no_credential_is_told() -> None:
    found = notice("https://me:hunter2secret@host/x refused", store="s3://lake?X-Amz-Signature=abcdef0123456789")
    assert "hunter2secret" not in found.model_dump_json() and "abcdef0123456789" not in found.model_dump_json()
