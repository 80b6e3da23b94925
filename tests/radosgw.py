"""A real S3 service for tests: Ceph's radosgw with one monitor and one in-memory disk, from Debian's packages.

Nothing is installed: `python -m tests.radosgw FOLDER` downloads and unpacks the packages (260 MB, Debian 12), and
MICLIP_RADOSGW=FOLDER makes the slow tests use them. With radosgw installed on the machine no variable is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.servers import CREDENTIALS, free_port, process

PACKAGES = ["radosgw", "ceph-mon", "ceph-osd"]
FSID = "11111111-2222-3333-4444-555555555555"
CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
osd objectstore = memstore
memstore device bytes = 2147483648
osd class dir = {lib}/rados-classes
erasure code dir = {lib}/ceph/erasure-code
plugin dir = {lib}/ceph
run dir = {data}
log file = {data}/$name.log
mon cluster log file = {data}/cluster.log
admin socket = {data}/$name.asok
pid file = {data}/$name.pid
mon data = {data}/mon
osd data = {data}/osd
rgw data = {data}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


def radosgw_root() -> Path | None:
    """Where the unpacked or installed packages are; None when this machine has none."""
    if folder := os.environ.get("MICLIP_RADOSGW"):
        return Path(folder)
    return Path("/") if all(shutil.which(name) for name in ("radosgw", "ceph-mon", "ceph-osd")) else None


@contextmanager
def radosgw(data: Path) -> Iterator[str]:
    """The URL of a fresh, empty service that keeps its files under `data`, ended with the block."""
    root = radosgw_root()
    if root is None:
        raise RuntimeError("no radosgw here; set MICLIP_RADOSGW to a folder made by python -m tests.radosgw")
    lib = next(root.glob("usr/lib/*-linux-gnu/rados-classes")).parent
    port, mon_port = free_port(), free_port()
    for name in ("mon", "osd", "rgw"):
        (data / name).mkdir()
    (data / "ceph.conf").write_text(
        CONFIGURATION.format(fsid=FSID, mon_port=mon_port, port=port, lib=lib, data=data), encoding="utf-8"
    )
    env = {**os.environ, "CEPH_CONF": str(data / "ceph.conf"), "PATH": f"{root}/usr/bin:{os.environ['PATH']}"}
    if root != Path("/"):
        triplet = lib.name
        env["LD_LIBRARY_PATH"] = f"{lib}:{lib}/ceph:{root}/lib/{triplet}"
        env["PYTHONPATH"] = f"{root}/usr/lib/python3/dist-packages"

    def run(*command: str) -> None:
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=300)

    monmap = str(data / "monmap")
    run("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", "--fsid", FSID, monmap)
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
    with ExitStack() as stack:
        stack.enter_context(process(["ceph-mon", "-i", "a", "-f"], env))
        run("/usr/bin/python3", f"{root}/usr/bin/ceph", "osd", "create")
        run("ceph-osd", "-i", "0", "--mkfs")
        stack.enter_context(process(["ceph-osd", "-i", "0", "-f"], env))
        url = f"http://127.0.0.1:{port}"
        stack.enter_context(process(["radosgw", "-n", "client.rgw", "-f"], env, ready_url=url))
        keys = ["--access-key", CREDENTIALS["AWS_ACCESS_KEY_ID"], "--secret-key", CREDENTIALS["AWS_SECRET_ACCESS_KEY"]]
        run("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        yield url


def unpack(folder: Path) -> None:
    """Download the packages and all they need from Debian, and unpack them below `folder`."""
    downloads = folder / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    simulate = ["apt-get", "install", "--simulate", "--no-install-recommends", *PACKAGES]
    plan = subprocess.run(simulate, check=True, capture_output=True, text=True).stdout
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    subprocess.run(["apt-get", "download", *names], cwd=downloads, check=True)
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)


if __name__ == "__main__":
    begun = time.monotonic()
    unpack(Path(sys.argv[1]).resolve())
    print(f"unpacked in {time.monotonic() - begun:.0f} s; now set MICLIP_RADOSGW={Path(sys.argv[1]).resolve()}")
