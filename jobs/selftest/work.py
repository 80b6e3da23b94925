"""Selftest shards: rows that are a pure function of (seed, variant, row), then their sum."""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.protocol import Artifact, Gang, Inputs, Keep, Part, Setting
from schemas.errors import NonFiniteActivation, OutOfMemory
from schemas.plans import Plan, Shard
from schemas.tables import TABLES


def get_value(seed: int, variant: str, row: int) -> float:
    """A number in [0, 1) from splitmix64 of (seed, variant, row)."""
    z = (seed * 0x9E3779B97F4A7C15 + row + 1 + sum(variant.encode()) * 0xD1342543DE82EF95) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


class SelftestWorker:
    """Holds the plans; every switch is read from them."""

    def __init__(self, setting: Setting) -> None:
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._gang = setting.gang
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Rows of the shard for each variant; in the second round one summary each."""
        if shard.round == 1:
            for stage in stages:
                yield self._summary(self._plans[stage], inputs)
            return
        self._misbehave(shard, self._plans[stages[0]].effort)
        if self._gang.size > 1:
            meet(self._gang)
        for stage in stages:
            yield from self._rows(self._plans[stage], shard)

    def _misbehave(self, shard: Shard, switches: dict[str, Any]) -> None:
        time.sleep(switches["sleep_ms"] / 1000)
        folder = switches["crash_once_dir"]
        if folder is not None:
            try:
                (Path(folder) / f"crash-{shard.number}").unlink()
            except FileNotFoundError:  # it was not there, or another member of the gang took it
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        if shard.number in switches["poison_shards"]:
            os._exit(17)
        if shard.number in switches["error_shards"]:
            raise ValueError(f"shard {shard.number} was told to fail")

    def _rows(self, plan: Plan, shard: Shard) -> Iterator[Part]:
        params: dict[str, Any] = plan.stage.params
        limit = plan.effort["oom_above"]
        size = int(plan.effort["batch_rows"])  # type: ignore[arg-type]
        start = shard.start
        while start < shard.stop:
            try:
                if limit is not None and size > int(limit):  # type: ignore[arg-type]
                    raise OutOfMemory(f"{size} rows do not fit, {limit} do")
            except OutOfMemory:
                if size == 1:
                    raise
                size //= 2
                self.notes.append(f"out of memory: batch halved to {size}")
                continue
            rows = range(start, min(start + size, shard.stop))
            bad = sorted(set(rows) & set(params["nan_rows"]))
            if bad:
                raise NonFiniteActivation(f"selftest value of row {bad[0]} is NaN; remove it from nan_rows")
            values = [get_value(params["seed"], params["variant"], row) for row in rows]
            yield Part(plan.digest, "selftest", self._batch(plan, rows, values))
            start = rows.stop

    @staticmethod
    def _batch(plan: Plan, rows: range, values: list[float]) -> pa.RecordBatch:
        vectors = [[math.ldexp(round(v * 1024), -10 - i) for i in range(4)] for v in values]
        columns = {"stage": [plan.digest] * len(rows), "row": list(rows), "value": values, "vector": vectors}
        return pa.RecordBatch.from_pydict(columns, schema=TABLES["selftest"].schema)

    @staticmethod
    def _summary(plan: Plan, inputs: Inputs) -> Part:
        total, n = 0.0, 0
        for shard in plan.shards(0):
            table = inputs.shard_table(plan.digest, shard.number, "selftest")
            n += table.num_rows
            for value in table.column("value").to_pylist():
                total += value
        columns = {"stage": [plan.digest], "rows": [n], "total": [total]}
        return Part(
            plan.digest,
            "selftest_summary",
            pa.RecordBatch.from_pydict(columns, schema=TABLES["selftest_summary"].schema),
        )


def meet(gang: Gang, timeout: float = 30.0) -> int:
    """Rendezvous at rank 0's address: everybody sends its rank, everybody gets the sum back.

    Raises:
        TimeoutError: a member did not come.
    """
    host, port = gang.address.rsplit(":", 1)
    if gang.rank == 0:
        return _host_meeting(int(port), gang.size, timeout)
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=timeout) as link:
                link.sendall(struct.pack("!q", gang.rank))
                return int(struct.unpack("!q", _read(link, 8))[0])
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank 0 at {gang.address} did not answer in {timeout} s") from None
            time.sleep(0.05)


def _host_meeting(port: int, size: int, timeout: float) -> int:
    with socket.create_server(("", port)) as server:
        server.settimeout(timeout)
        links = [server.accept()[0] for _ in range(size - 1)]
        total = sum(struct.unpack("!q", _read(link, 8))[0] for link in links)
        for link in links:
            link.sendall(struct.pack("!q", total))
            link.close()
    return total


def _read(link: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        more = link.recv(n - len(data))
        if not more:
            raise ConnectionError("a gang member went away")
        data += more
    return data


def open_worker(setting: Setting, inputs: Inputs) -> SelftestWorker:
    """Nothing to load."""
    return SelftestWorker(setting)
