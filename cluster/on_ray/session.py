"""A Ray session: joining a cluster, or starting one on this machine that only its owner can use."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from schemas.errors import ClusterUnreachable

OBJECT_STORE_BYTES = 150 << 20
"""Shards go to the store and not through Ray, so its shared memory holds little."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def start_local(cpus: int | None = None, gpus: int = 0, object_store_bytes: int = OBJECT_STORE_BYTES) -> None:
    """Start Ray on this machine: open to holders of its token only, without dashboard and telemetry.

    cpus: how many workers of one CPU may run at once; all of this machine's if None. gpus are stated, never sniffed.

    Raises:
        ClusterUnreachable: its processes do not come up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    keep_token_private()
    try:
        with _signal_handlers_kept():
            ray.init(
                address="local",  # never a cluster that happens to run here; that is what `join` is for
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                **_QUIET,
            )
    except Exception as error:  # Ray has no class of its own for a machine too busy or too full for it
        raise ClusterUnreachable(
            f"Ray did not start on this machine: {first_line(error)}; start again when it is less busy, or with --executor serial"
        ) from error


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself and leaves at once; a caller with a handler of its own wants to end cleanly."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if callable(handler) and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def join(address: str) -> None:
    """Join a running cluster: `auto`, `host:port` or `ray://host:port`.

    Raises:
        ClusterUnreachable: nothing answers there, or it refuses our token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(address)
        with _signal_handlers_kept():
            ray.init(address=address, **_QUIET)
    except ray.exceptions.AuthenticationError as error:
        raise refused(address, error) from error
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterUnreachable(f"no Ray cluster answers at {address!r}: {first_line(error)}") from error


def refused(address: str, error: BaseException) -> ClusterUnreachable:
    """What to say of a cluster that does not know our token."""
    return ClusterUnreachable(
        f"the Ray cluster at {address} refused our token ({first_line(error)}); put the cluster's token into "
        f"{token_path() or 'RAY_AUTH_TOKEN'} or set RAY_AUTH_TOKEN_PATH"
    )


def _knock(address: str) -> None:
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address_or_die

        address = canonicalize_bootstrap_address_or_die(address)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    knock(host.strip("[]"), int(port))


def knock(host: str, port: int) -> None:
    """Fail within seconds where nobody listens; Ray would try for minutes. Raises OSError."""
    socket.create_connection((host, port), timeout=10.0).close()


def token_path() -> Path | None:
    """The file with the token that opens a cluster to its owner; None where RAY_AUTH_TOKEN holds it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def keep_token_private() -> None:
    """Make sure that the token exists and is readable by its owner alone; Ray would write it with the umask's mode."""
    path = token_path()
    if path is None:
        return
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(draft, path)  # whole or not at all: another start may read it at this moment
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
