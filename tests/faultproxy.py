"""An HTTP proxy on loopback that forwards to one S3 server and breaks the requests its rules pick."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

Action = Literal["status", "hang", "reset", "lose_answer", "cut_body", "tear_upload", "delay"]
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect"}


@dataclass
class Rule:
    """Break the requests number `first` to `first + times - 1` that match method and path (regular expressions).

    status: answer with `status` and `code`, never forward. hang: sleep `seconds`, then close. reset: close at once.
    lose_answer: forward, then close without an answer. cut_body: forward, send half of the answer, close.
    tear_upload: send half of the upload to the server, then close both sides. delay: sleep `seconds`, then forward.
    """

    action: Action
    method: str = ".*"
    path: str = ".*"
    first: int = 1
    times: float = 1
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 30.0
    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def takes(self, request: web.Request) -> bool:
        """Count a matching request; whether it is to be broken."""
        if not (re.fullmatch(self.method, request.method) and re.search(self.path, request.raw_path)):
            return False
        self.seen += 1
        picked = self.first <= self.seen < self.first + self.times
        self.fired += picked
        return picked


class FaultProxy:
    """`with FaultProxy(upstream) as proxy: proxy.rules = [Rule(...)]`; talk to `proxy.url`, read `proxy.log`."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.rules: list[Rule] = []
        self.log: list[tuple[str, str, str]] = []  # method, path, action
        self.url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        if not self._ready.wait(120):
            raise RuntimeError("the fault proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    @contextmanager
    def breaking(self, *rules: Rule) -> Iterator[FaultProxy]:
        """Only inside the block, follow these rules; the log starts empty."""
        self.rules, self.log = list(rules), []
        try:
            yield self
        finally:
            self.rules = []

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as self._client:
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        rule = next((rule for rule in self.rules if rule.takes(request)), None)
        action = rule.action if rule else "forward"
        self.log.append((request.method, request.raw_path, action))
        body = await request.read()
        if rule and action in ("hang", "delay"):
            await asyncio.sleep(rule.seconds)
        if rule and action == "status":
            text = f"<Error><Code>{rule.code}</Code><Message>injected</Message></Error>"
            return web.Response(status=rule.status, text=text, content_type="application/xml")
        if action in ("hang", "reset"):
            return _drop(request)
        if action == "tear_upload":
            await self._send_half(request, body)
            return _drop(request)
        return await self._forward(request, body, action)

    async def _forward(self, request: web.Request, body: bytes, action: str) -> web.StreamResponse:
        # Host and the raw path go through unchanged: the client signed them.
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url = URL(self.upstream + request.raw_path, encoded=True)
        async with self._client.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            content = await answer.read()
            if action == "lose_answer":
                return _drop(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
            await response.prepare(request)
            if action == "cut_body":
                await response.write(content[: len(content) // 2])
                await asyncio.sleep(0.05)  # let the half arrive before the connection goes
                return _drop(request)
            if request.method != "HEAD":
                await response.write(content)
            return response

    async def _send_half(self, request: web.Request, body: bytes) -> None:
        url = URL(self.upstream)
        _, writer = await asyncio.open_connection(url.host, url.port)
        lines = [f"{request.method} {request.raw_path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body[: len(body) // 2])
        await writer.drain()
        writer.transport.abort()


def _drop(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)
