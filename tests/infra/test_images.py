"""The Dockerfile and the compose file, as far as that can be seen without Docker: what they copy, install and call is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.spec_file import read_spec_file
from infra.pods import USER

ROOT = Path(__file__).parent.parent.parent
INFRA = ROOT / "infra"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def steps(instruction: str) -> list[str]:
    text = (INFRA / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{instruction} ")]


def copied() -> list[str]:
    return list(dict.fromkeys(source for step in steps("COPY") for source in step.split()[:-1]))


def test_what_is_copied_is_there_and_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())


def test_both_images_install_extras_and_versions_that_exist() -> None:
    installs = [shlex.split(step) for step in steps("RUN") if step.startswith("pip install")]
    assert len(installs) == 2
    for words in installs:
        assert words[words.index("-c") + 1] == "constraints.txt"
        (package,) = [word for word in words if word.startswith(".[")]
        assert set(package[2:-1].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
        assert "ray[default]" in words, "job submission and figures of nodes need it"
    assert [step for step in steps("FROM") if " AS cpu" in step or " AS gpu" in step] == ["base AS cpu", "base AS gpu"]


def test_images_hold_the_python_that_is_asked_for_and_the_user_that_pods_are() -> None:
    (tag,) = re.findall(r"python:(\d+\.\d+)-slim-bookworm", steps("FROM")[0])
    assert f">={tag}" == PROJECT["project"]["requires-python"]
    assert f"--uid {USER} " in " ".join(steps("RUN")) and set(steps("USER")) == {str(USER)}


def test_the_dockerfile_is_one_and_its_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(linter), "--no-color", str(INFRA / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.slow
def test_the_package_can_be_built_from_what_is_copied_alone(tmp_path: Path) -> None:
    """Everything that an installed package needs is in the image: as many files as the folders have."""
    source = tmp_path / "source"
    source.mkdir()
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    folders = ("schemas", "miclip_core", "jobs", "cluster")
    files = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc")
    assert inside == {str(path.relative_to(ROOT)) for path in files} | {"miclip.py"}


# ---------------------------------------------------------------- compose


def services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]


def identities() -> list[dict[str, Any]]:
    """Who may do what with the S3 service."""
    return json.loads(yaml.safe_load((INFRA / "compose.yaml").read_text())["configs"]["s3"]["content"])["identities"]


def test_the_compose_file_builds_an_image_that_exists_from_where_it_lies() -> None:
    for name, service in services().items():
        if name != "s3":
            build = service["build"]
            assert (INFRA / build["context"]).resolve() == ROOT
            assert (ROOT / build["dockerfile"]).is_file() and build["target"] in ("cpu", "gpu")


def test_the_compose_file_holds_no_key_and_opens_no_port_to_others() -> None:
    text = (INFRA / "compose.yaml").read_text()
    assert re.findall(r"(?:AWS_SECRET_ACCESS_KEY|AWS_ACCESS_KEY_ID): (?!\$\{)", text) == []
    assert all(port.startswith("127.0.0.1:") for service in services().values() for port in service.get("ports", ()))


def test_services_call_what_there_is_and_wait_for_services_that_there_are() -> None:
    for service in services().values():
        assert set(service.get("depends_on", ())) <= services().keys()
    assert services()["bucket"]["command"].split()[:3] == ["python", "-m", "infra.bucket"]
    words = services()["metrics"]["command"].split()
    shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).output
    assert all(word in shown for word in words if word.startswith("--"))


def test_the_commands_above_the_compose_file_name_verbs_and_specs_that_there_are() -> None:
    text = (INFRA / "compose.yaml").read_text()
    commands = [line.split() for line in re.findall(r"run --rm miclip (.+)", text)]
    assert [words[0] for words in commands] == ["doctor", "nightly"]
    for words in commands:
        shown = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0 and all(word in shown.output for word in words if word.startswith("--"))
    made = services()["bucket"]["command"].split()[3:]
    assert made == [commands[0][-1], commands[1][-1]] and services()["s3"]["ports"][0].startswith("127.0.0.1:8333")
    (anonymous,) = [one for one in identities() if "credentials" not in one]
    assert anonymous["actions"] == ["Read:pages"], "a browser reads pages and nothing else"
    assert "http://127.0.0.1:8333/pages/index.html" in text
    spec = INFRA / Path(commands[1][1]).name
    assert read_spec_file(spec).pipeline.store is None, "the store is that of the environment"
