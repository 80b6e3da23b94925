"""An environment per library, because their requirements conflict: a venv that shares this interpreter's torch, made by pip."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ALONE: dict[str, tuple[str, ...]] = {
    "saelens": (),
    "sparsify": (),
    "dictionary_learning": ("dictionary-learning==0.1.0",),
    "overcomplete": ("overcomplete==0.3.0",),
}
"""Installed without what they ask for, most of which they do not need to train and run an SAE."""
REQUIRED: dict[str, tuple[str, ...]] = {
    "saelens": ("sae-lens==6.54.12",),
    "sparsify": ("eai-sparsify==1.3.3",),
    "dictionary_learning": ("nnsight>=0.3,<0.4", "datasets", "einops", "zstandard", "wandb"),
    "overcomplete": ("einops", "matplotlib>=3.8.4,<3.9", "opencv-python-headless", "scikit-image", "scikit-learn"),
}
_AWAY = ("NewConnectionError", "ConnectTimeout", "NameResolutionError", "ProxyError", "No route to host", "Read timed out",
         "Temporary failure in name resolution", "Network is unreachable", "Max retries exceeded")  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """A Python that can import one library, and this repository."""

    python: Path

    def run(self, module: str, *words: object, timeout: float = 240.0) -> str:
        """`python -m module words...` with one thread; returns what it printed and fails the test if it fails."""
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SPARSIFY_DISABLE_TRITON": "1",
                    "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
        done = subprocess.run(
            [self.python, "-m", module, *map(str, words)], cwd=ROOT, env=settings, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, f"{module} {words}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return done.stdout


def make_environment(library: str, folder: Path) -> Environment:
    """The environment of a library in `folder`, or in $MICLIP_TEST_ENVS where it stays for the next session.

    Skips the test where the package index cannot be reached.
    """
    place = Path(os.environ.get("MICLIP_TEST_ENVS") or folder) / library
    python = place / "bin" / "python"
    wanted = "\n".join((*ALONE[library], *REQUIRED[library]))
    stamp = place / "made-of.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return Environment(python)
    venv.create(place, with_pip=False, clear=True)
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    inside = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (inside / "shared.pth").write_text("\n".join(sorted(shared)) + "\n")  # torch and pip are those of this interpreter
    if ALONE[library]:
        _install(python, ("--no-deps", *ALONE[library]))
    _install(python, REQUIRED[library])
    stamp.write_text(wanted)
    return Environment(python)


def _install(python: Path, words: Sequence[str]) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "--retries", "1",
               "--timeout", "20", *words]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    if done.returncode and any(sign in done.stderr for sign in _AWAY):
        pytest.skip(f"the package index cannot be reached, so {' '.join(words)} could not be installed")
    assert done.returncode == 0, f"pip install {' '.join(words)}:\n{done.stderr[-4000:]}"
