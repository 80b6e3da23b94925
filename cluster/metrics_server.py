"""A page for a monitoring system to read: `/metrics`, made from the store at every request."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cluster.metrics import StoreMetrics, to_text

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer(ThreadingHTTPServer):
    """Answers `/metrics`, and `/healthz` without a look at the store. Port 0 takes a free one: `server_port`."""

    daemon_threads = True

    def __init__(self, metrics: StoreMetrics, host: str, port: int) -> None:
        super().__init__((host, port), _Handler)
        self.metrics = metrics


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = 30.0

    def do_GET(self) -> None:
        page = self.path.partition("?")[0]
        if page == "/metrics":
            self._answer(200, to_text(self.server.metrics.read()))
        elif page == "/healthz":
            self._answer(200, "ok\n")
        else:
            self._answer(404, "there are /metrics and /healthz\n")

    def _answer(self, code: int, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", TEXT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line per request says nothing that the monitoring system does not know."""
