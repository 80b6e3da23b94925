"""Every `miclip` command of the README and docs/ is one that the command line takes, and runs: here on what stands in for buckets, specs and models of yours."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cluster.cli.app import app
from tests.cluster.test_notify import listener
from tests.lakes import export
from tests.test_docs import PAGES, ROOT, Command, blocks, commands

FENCES = {
    "": "run by tests/test_docs.py in the folder of a demo",
    "quickstart": "run by tests/test_doc_pages.py, one after the other",
    "yours": "run below, with stand-ins",
    "example": "specs of jobs/examples, which tests/test_examples.py and tests/test_nightly_example.py run",
    "not-run": "no more than parsed, for a reason that NOT_RUN names",
}
NOT_RUN = {
    "cluster.md": "a running cluster: tests/faults/test_remote.py submits",
    "operations.md": "Kubernetes",
    "explain.md": "the weights of Gemma",
    "explore.md": "a person who closes the browser",
    "quickstart.md": "an installation: tests/test_packaging.py installs",
    "faults.md": "half an hour of faults",
}


@functools.cache
def verbs() -> Mapping[str, Any]:
    """The verbs and groups of the command line."""
    return typer.main.get_command(app).commands


def parse(words: Sequence[str]) -> str:
    """What the command line says against these words behind `miclip`, "" for nothing; nothing is run."""
    named, left = verbs(), list(words)
    while named is not None:
        if not left or left[0] not in named:
            return f"no such verb: {' '.join(words)}"
        command = named[left.pop(0)]
        named = getattr(command, "commands", None)
    try:
        command.make_context(command.name, left)
    except Exception as error:  # of a class that depends on the version of typer
        return str(error)
    return ""


@pytest.mark.parametrize(
    "words",
    [
        "nope",
        "plan zoo.yaml --pric 2",
        "status a b",
        "gc --keep-runs 0",
        "nightly zoo.yaml --notify-on nev",
        "plan",
        "export",
    ],
)
def test_a_command_that_is_wrong_is_seen(words: str) -> None:
    assert parse(shlex.split(words))


def test_every_command_of_the_pages_is_one_that_the_command_line_takes() -> None:
    problems = {str(c): parse(shlex.split(c.text)[1:]) for c in commands(*FENCES)}
    assert len(problems) > 80 and {where: said for where, said in problems.items() if said} == {}


def test_commands_within_sentences_have_verbs_and_options_that_are_there() -> None:
    problems = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for span in re.findall(r"`(miclip [a-z]+(?: [^`]*)?)`", text):
            said = parse(shlex.split(span)[1:])
            if said and not re.search("Missing|requires an argument", said):  # a sentence need not say it all
                problems[f"{page.name}: {span}"] = said
    assert problems == {}


def test_no_command_of_the_pages_is_left_out() -> None:
    found = Counter(command.block for command in commands(*FENCES))
    named = re.compile(rf"\bmiclip (?:{'|'.join(verbs())})\b")
    for block in blocks("sh"):
        assert block.words in FENCES, f"{block}: {block.words}"
        assert len(named.findall(re.sub(r" +  #.*", "", block.text))) == found[block], block
    assert {block.page for block in blocks("sh") if block.words == "not-run"} == set(NOT_RUN)


# -- with stand-ins

SPEC = """\
kind: pipeline
name: zoo
images: {ref: "world:seed=0,n=48"}
matrix: {model: ["demo:clip-p8"]}
stages:
  acts: {kind: extract, sites: ["resid_post.-2@patch"], outputs: [activations, top_images, embeddings]}
  sae: {kind: train_sae, reads: acts, latents: 32, k: 4, steps: 20, batch_tokens: 128, block_images: 8}
  features: {kind: sae_features, reads: [sae, acts]}
  pages: {kind: explorer, reads: [features, acts]}
"""
STAND_INS = {
    "s3://lab-miclip/lake": "{folder}/lake", "s3://my-lab/lake": "{folder}/lake", "s3://lab/lake": "{folder}/lake",
    "/data/lake": "{folder}/lake", "STORE": "{folder}/lake", "sparsify:./": "sparsify:{folder}/",
    "s3://lab-miclip/pages": "pages", "s3://lab/pages": "pages", "/srv/www/zoo": "pages",
    "/var/lib/node_exporter/": "", "--images 2000": "--images 20",
    "zoo-00012": "zoo-00002", "zoo-00005": "zoo-00001", "zoo-00003": "zoo-00001",
    "first-00001": "zoo-00001", "first-00012": "zoo-00002", " RUN": " zoo-00002",
}  # fmt: skip
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
MINE = {
    "/data/photos": "{folder}/photos", "/models/my-vit": "{folder}/my-vit",
    "open_clip:ViT-B-16@file:/runs/epoch_10.pt": "demo:clip-p8", "gpus: 1": "gpus: 0",
}  # fmt: skip


def replace(text: str, stand_ins: Mapping[str, str], folder: Path) -> str:
    """The text with what stands in for what is the reader's."""
    for old, new in stand_ins.items():
        text = text.replace(old, new.replace("{folder}", str(folder)))
    return text


def call(lake: Path, folder: Path, words: Sequence[str]) -> str:
    """What one command prints in a process of its own; it must end well."""
    words = [*words, "--executor", "serial"] if words[0] in ("run", "nightly") else words
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MICLIP_STORE": str(lake)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def yours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with specs, a model, photos, and a lake of two nights of a small zoo; and what stands in for what."""
    from miclip_core.zoo.hf import transformers

    folder = tmp_path_factory.mktemp("yours")
    for number, image in enumerate(sorted((export(folder / "world", 24) / "images").iterdir())):
        place = folder / "photos" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(folder / "my-vit")
    page = next(block.text for block in blocks("yaml") if block.page == "own-model.md")
    (folder / "mine.yaml").write_text(replace(page, MINE, folder))
    (folder / "zoo.yaml").write_text(SPEC)
    lake = folder / "lake"
    for seed in ("1", "0"):  # the last is as the spec says, so that further nights are equal
        call(lake, folder, ["nightly", "zoo.yaml", "--set", f"stages.sae.seed={seed}"])
    sae = call(lake, folder, ["sql", "SELECT DISTINCT sae FROM sae_features", "--csv"]).split()[1]
    call(lake, folder, ["export", "sae", sae, "--format", "sparsify", "--to", "layers.8"])
    with listener(200) as (url, _):
        yield folder, {**STAND_INS, "sae:3f2a9c1b7d60": sae, "https://hooks.example.org/T0/B0": url}


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("yours"), ids=str)
def test_the_commands_about_what_is_yours_run(
    yours: tuple[Path, dict[str, str]], command: Command, tmp_path: Path
) -> None:
    folder, stand_ins = yours
    for spec in folder.glob("*.yaml"):
        shutil.copy(spec, tmp_path)
    call(folder / "lake", tmp_path, shlex.split(replace(command.text, stand_ins, folder))[1:])
