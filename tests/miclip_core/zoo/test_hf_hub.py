"""Models of a hub: revisions, the cache, private repositories and simultaneous first downloads, against a loopback hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from miclip_core.zoo.hf import transformers
from tests.hub import Hub, serve
from tests.miclip_core.zoo.test_hf_vit import SIZE

NEWER = "f" * 40
SECRET = "hf_" + "k7Qz" * 9
CLIENT = Path(__file__).with_name("hub_client.py")


@dataclass(frozen=True)
class Session:
    """What one process found, and what the hub was asked for."""

    hub: Hub
    commit: str
    answers: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One process that sees only this hub and an empty cache goes through all the steps."""
    folder, empty, cache = (tmp_path_factory.mktemp(name) for name in ("vit", "empty", "cache"))
    transformers.ViTModel(transformers.ViTConfig(**SIZE)).save_pretrained(folder)
    with serve() as hub:
        repository = hub.add("org/vit", folder)
        (commit,) = repository.commits
        repository.commits[NEWER] = {**repository.commits[commit], "model.safetensors": b"of another state"}
        repository.moves["main"] = NEWER  # between the config and the weights
        hub.add("org/bare", empty)
        hub.add("org/private", folder, token=SECRET)
        hub.add("org/slow", folder, delay=0.3)
        hub.add("org/down", folder, refuses={"HEAD": 503})
        hub.add("org/busy", folder, refuses={"GET": 500})
        hub.add("org/blocked", folder, refuses={"HEAD": 403})
        hub.add("org/cut", folder, cuts=True)
        steps = {
            "first": {"model": "hf:org/vit"},
            "missing": {"model": "hf:org/nothing"},
            "gone": {"model": "hf:org/vit@no-such-branch"},
            "bare": {"model": "hf:org/bare"},
            "down": {"model": "hf:org/down"},
            "busy": {"model": "hf:org/busy"},
            "blocked": {"model": "hf:org/blocked"},
            "cut": {"model": "hf:org/cut"},
            "together": {"model": "hf:org/slow", "processes": 3},
            "refused": {"model": "hf:org/private"},
            "wrong": {"model": "hf:org/private", "token": SECRET[:-1]},
            "opened": {"model": "hf:org/private", "token": SECRET},
            "again": {"model": f"hf:org/vit@{commit}", "offline": True, "load": True},
            "other": {"model": "hf:org/other", "offline": True},
            "words": {"tokeniser": "ViT-B-16-SigLIP"},
            "own": {"tokeniser": "ViT-B-16"},
        }
        yield Session(hub, commit, ask(hub, cache, steps))


def ask(hub: Hub, cache: Path, steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Facts or the error of each step, from a process of its own; whatever it says, the token is not in it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(CLIENT), json.dumps(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert SECRET[:-1] not in done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_branch_is_read_as_the_commit_it_means_at_first(session: Session) -> None:
    hub, first = session.hub, session.answers["first"]
    assert first["revision"] == session.commit and first["family"] == "hf_vit"
    asked = {entry[2] for entry in hub.log if entry[1] == "org/vit" and entry[3] != "config.json"}
    assert asked == {session.commit}


def test_what_was_fetched_is_found_again_without_the_hub(session: Session) -> None:
    first, again, other = (session.answers[name] for name in ("first", "again", "other"))
    assert again["revision"] == session.commit and again["weights_sha256"] == first["weights_sha256"]
    assert again["finite"] and session.hub.fetched("org/vit", "model.safetensors") == 1
    assert other["error"] == "ModelUnreachable" and "cannot be reached" in other["message"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("missing", "org/nothing: the hub has no such repository"),
        ("gone", "org/vit: the repository has no revision no-such-branch"),
        ("bare", "org/bare: the repository has no config.json"),
        ("refused", "the environment variable HF_TOKEN is not set"),
        ("wrong", "the token of HF_TOKEN (or of the stored login) may not read it"),
        ("blocked", "the server refuses config.json with status 403; the environment variable HF_TOKEN is not set"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(session: Session, step: str, message: str) -> None:
    found = session.answers[step]
    assert found["error"] == "UnknownModel" and message in found["message"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("down", "org/down: the server refuses config.json with status 503; it is overloaded or has a fault"),
        ("busy", "the server refuses config.json with status 500"),
        ("cut", "config.json could not be fetched: "),
    ],
)
def test_faults_of_the_hub_that_may_pass_are_no_faults_of_the_spec(session: Session, step: str, message: str) -> None:
    found = session.answers[step]
    assert found["error"] == "ModelUnreachable" and message in found["message"]


def test_a_tokeniser_of_the_hub_that_cannot_be_fetched_is_said_by_name(session: Session) -> None:
    words = session.answers["words"]
    assert words["error"] == "ModelUnreachable"
    assert words["message"].startswith("open_clip:ViT-B-16-SigLIP: its tokeniser is not in the local cache")
    assert session.answers["own"]["ids"][0][:4] == [49406, 320, 2368, 49407]


def test_a_private_repository_opens_with_the_token_of_the_environment(session: Session) -> None:
    assert session.answers["opened"]["family"] == "hf_vit"


def test_processes_that_ask_first_at_once_fetch_the_weights_once(session: Session) -> None:
    digests = session.answers["together"]["digests"]
    assert len(digests) == 3 and len(set(digests)) == 1
    assert session.hub.fetched("org/slow", "model.safetensors") == 1
