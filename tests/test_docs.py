"""What the README and docs/ say is true: their Python, SQL and commands run, their tables agree with the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import miclip
from cluster.drift import compare_models
from cluster.drift_table import save_drift
from cluster.spec_file import parse_spec
from miclip_core.images import FORMATS, MAX_PIXELS
from miclip_core.world.card import read_card
from miclip_core.world.recipes import RECIPES
from miclip_core.zoo.load import inspect_model
from schemas.cells import Cell, OverModels, OverZoo
from schemas.explain_specs import ExplainSpec, MapExplanationsSpec, ScoreExplanationsSpec
from schemas.explain_tables import EXPLANATIONS
from schemas.invert_specs import InvertSpec
from schemas.models import site_names
from schemas.pipeline_spec import PipelineSpec
from schemas.refs import ModelRef
from schemas.rosetta_specs import MineRosettaSpec
from tests.lakes import Lake, export

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ZOO = ROOT / "miclip_core" / "world" / "zoo"
STORE = "miclip-demo/store"


class Block(NamedTuple):
    """One fenced block of a page: language, further words of the fence, text."""

    page: str
    line: int
    language: str
    words: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w+) ?([\w -]*)\n(.*?)^```$", text, re.M | re.S):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page.name, line, match[1], match[2], match[3]))
    return [block for block in found if block.language in languages]


class Command(NamedTuple):
    """One `miclip` line of a block, its comment left out."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block} {self.text[:40]}"


def commands(*fences: str) -> list[Command]:
    """Every `miclip` line of the blocks that are marked with one of these words, "" for no word."""
    found = []
    for block in blocks("sh"):
        joined = re.sub(r'"[^"]*"', lambda m: m[0].replace("\n", " "), block.text)
        for line in joined.splitlines():
            match = re.search(r"(?:^|\) |&& )(miclip .*?)(?: *  #| >>|$)", line)
            if match and block.words in fences:
                found.append(Command(block, match[1]))
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small `miclip-demo/store`: what `make demo` leaves, over 40 images, two models and one small SAE."""
    folder = tmp_path_factory.mktemp("docs")
    world = export(folder / "world", 40)
    both = ["demo:clip-p8", "demo:clip-rn"]
    stages = {
        "vectors": {
            "sites": ["resid_post.-2@patch"],
            "outputs": ["activations", "top_images", "predictions"],
            "classes": {"names": ["circle", "square", "star"], "templates": ["a {}"]},
            "model": both[:1],
        },
        "embeds": {"outputs": ["embeddings"], "model": both},
    }
    classes = stages["vectors"]["classes"]
    layers = {
        "sites": ["resid_post.0@patch:mean", "resid_post.3@patch:mean"],
        "outputs": ["activations", "predictions"],
    }
    stages["layers"] = {**layers, "classes": classes, "model": both[:1]}
    sae = {"reads": "vectors", "latents": 32, "k": 4, "steps": 20, "batch_tokens": 128, "block_images": 8}
    saes = {"sae": {"kind": "train_sae", **sae}, "features": {"kind": "sae_features", "reads": ["sae", "vectors"]}}
    units = {
        "align": {"kind": "align", "reads": "vectors", "batch": 16},
        "names": {
            "kind": "describe",
            "reads": ["align", "vectors", "sae"],
            "methods": ["miclip", "act_values", "auroc"],
            "concepts": "world:shape,colour",
            "labels_from": ["shape", "colour"],
            "min_positives": 3,
        },
        "effects": {
            "kind": "intervene",
            "reads": "names",
            "classes": classes,
            "labels_from": "shape",
        },
        "looks": {
            "kind": "attention_maps",
            "reads": "names",
            "labels_from": ["shape", "colour"],
            "images_per_concept": 2,
        },
        "by_layer": {"kind": "align", "reads": "layers", "batch": 16},
        "traces": {"kind": "trace_errors", "reads": "by_layer", "labels_from": "shape"},
        "judge": {"kind": "evaluate", "reads": ["names", "effects"], "min_truth": 0.6},
        "near": {"kind": "geometry", "reads": "names", "permutations": 20},
        "shared": {
            "kind": "mine_rosetta",
            "reads": "sae",
            "model": both,
            "sites": ["mlp_act.-1", "stage.3"],
            "k": 2,
            "min_clique": 2,
            "entries": 4,
        },
        "shown": {"kind": "sae_features", "reads": "sae", "images": {"ref": "world:seed=0,n=24"}, "rank_by": "mean"},
        "others": {"kind": "sae_features", "reads": "sae", "images": {"ref": "world:seed=1,n=24"}, "rank_by": "mean"},
        "texts": {
            "kind": "explain",
            "reads": "shown",
            "vlm": "demo:llava-p8",
            "alpha_grid": [1, 2],
            "alpha_unit": "p90",
            "validation": 2,
            "k": 2,
            "most": 4,
            "max_new_tokens": 8,
        },
        "scores": {
            "kind": "score_explanations",
            "reads": ["texts", "others"],
            "on_shared": "leave_out",
            "scored": "all",
            "labels": "world",
            "top": 2,
        },
        "meanings": {"kind": "map_explanations", "reads": ["texts"], "texts": "all", "clusters": 2},
        "pages": {
            "kind": "explorer",
            "reads": ["features", "vectors", "names", "judge", "texts", "scores", "shared", "meanings"],
        },
    }
    spec = {
        "kind": "pipeline",
        "name": "demo",
        "clip": both[1],
        "images": {"ref": f"folder:{world}/images", "labels": f"file:{world}/labels.parquet"},
        "stages": {name: {"kind": "extract", **stage} for name, stage in stages.items()} | saes | units,
    }
    lake = Lake(folder / STORE)
    report = lake.run(PipelineSpec.model_validate(spec, strict=False))
    assert report.exit_code == 0, report.failures
    save_drift(lake.store, report.state.run, report.state.run, compare_models(lake.store, report.state, *both))
    return folder


@pytest.mark.parametrize("block", [b for b in blocks("python") if not b.words], ids=str)
def test_the_python_of_the_pages_runs(demo, block, monkeypatch):
    monkeypatch.chdir(demo)
    exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks("python") if b.words == "spark"], ids=str)
def test_the_spark_of_the_pages_runs(demo, block):
    pytest.importorskip("pyspark", reason="needs pyspark: pip install 'miclip[spark]', and Java")
    subprocess.run([sys.executable, "-c", block.text], cwd=demo, check=True, timeout=500)


@pytest.mark.parametrize("block", blocks("sql"), ids=str)
def test_the_sql_of_the_pages_runs(demo, block):
    assert miclip.open(str(demo / STORE)).sql(block.text).num_columns > 0


@pytest.mark.parametrize("command", commands(""), ids=str)
def test_the_commands_of_the_pages_run(demo, command):
    words = [sys.executable, "-m", "cluster.cli", *shlex.split(command.text)[1:]]
    done = subprocess.run(words, cwd=demo, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    assert done.stdout.strip(), command


def test_the_pages_find_the_examples_of_the_package(tmp_path):
    found = [b for b in blocks("sh") if b.text.startswith("examples=")]
    assert {block.page for block in found} == {"README.md", "describe.md", "pipelines.md"}
    for block in found:
        spec = re.search(r"^miclip (?:run|nightly) (\S+)", block.text, re.M)[1]
        script = f"{block.text.splitlines()[0]}\nls {spec}"
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=env, check=True)


def test_every_make_target_of_the_pages_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in {t for page in PAGES for t in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M)}:
        assert f"\n{target}:" in makefile, target


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_the_specs_of_the_pages_are_valid(block):
    assert parse_spec(block.text, str(block)).pipeline.stages


def test_every_link_between_the_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_setting_that_the_pages_name_is_read_by_the_code():
    code = "".join(
        path.read_text() for part in ("cluster", "miclip_core", "tests/soak") for path in (ROOT / part).rglob("*.py")
    )
    named = {name for page in PAGES for name in re.findall(r"MICLIP_[A-Z_]+", page.read_text())}
    assert named and all(f'"{name}"' in code for name in named), named


# -- images.md


def test_the_page_of_odd_images_has_every_rule_that_the_code_states():
    page = (ROOT / "docs" / "images.md").read_text()
    assert all(name in page.replace("WebP", "WEBP") for name in FORMATS) and f"{MAX_PIXELS:,}" in page
    reasons = {"empty", "not_an_image", "truncated", "too_large", "unsupported", "checksum", "missing", "nonfinite"}
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()


# -- models.md


def families() -> list[tuple[str, str]]:
    page = (ROOT / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| `([^`]+random\(0\))` \| ([^|]+) \|$", page, re.M)
    return [(ref, names) for ref, names in rows if "`" in names]


def block_names() -> set[str]:
    page = (ROOT / "docs" / "models.md").read_text()
    table = page.split("the same in every family of vision transformers:")[1].split("Sites of the others")[0]
    return {name for cell in re.findall(r"^\| ([^|]+) \|", table, re.M) for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(("ref", "names"), families(), ids=lambda value: value[:40])
def test_a_family_has_the_sites_that_its_row_says(ref, names):
    expected = set(re.findall(r"`(\w+)`", names)) | (block_names() if "blocks" in names else set())
    assert set(site_names(inspect_model(ModelRef.parse(ref)))) == expected


def test_every_way_to_name_a_model_parses():
    page = (ROOT / "docs" / "models.md").read_text()
    refs = re.findall(r"`((?:demo|open_clip|hf|timm):[^`…]+)`", page)
    assert len(refs) > 15 and all(str(ModelRef.parse(ref)) == ref for ref in refs)


# -- zoo.md


def zoo_rows() -> list[str]:
    """The table of docs/zoo.md, made from the cards beside the weights."""
    rows = []
    for name, recipe in RECIPES.items():
        if not (ZOO / name / "card.json").is_file():
            continue
        measured = read_card(ZOO / name)["measured"]
        accuracy, mark = measured.get("accuracy", {}), measured.get("watermark", {})
        word = measured.get("typography", {})
        figures = [accuracy.get(part) for part in ("shape", "colour", "texture", "size", "background")]
        figures += [mark.get("star_recall_without"), mark.get("star_recall_with"), word.get("attacked")]
        cells = [f"{100 * f:.1f}" if f is not None else "" for f in figures]
        rows.append(f"| `demo:{name}` | {recipe.title} | {' | '.join(cells)} |")
    return rows


def test_the_zoo_table_is_what_the_cards_say():
    """`python -m tests.test_docs` prints the table anew."""
    page = (ROOT / "docs" / "zoo.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| `demo:")] == zoo_rows()


def generator_rows() -> list[list[str]]:
    """The figures of the generator in docs/zoo.md, from its card."""
    measured = read_card(ZOO / "generator")["measured"]
    groups = [measured[name] for name in ("accuracy", "truth", "accuracy_clear", "truth_clear")]
    return [
        [f"{100 * group[part]:.1f}" for part in ("shape", "colour", "texture", "size", "background")]
        for group in groups
    ]


def test_the_figures_of_the_generator_are_what_its_card_says():
    page = (ROOT / "docs" / "zoo.md").read_text()
    section = page.split("## The generator")[1].split("```")[0]
    rows = [line.strip("| ").split(" | ")[1:] for line in section.splitlines() if line.startswith("| ")][1:]
    card = read_card(ZOO / "generator")
    assert rows == generator_rows()
    assert f"{card['measured']['psnr']['mean']:.1f} dB" in section and f"{card['cpu_seconds']} CPU seconds" in section
    assert f"more than {card['measured']['psnr']['worst_5_percent']:.1f} dB" in section


def test_the_figures_of_the_vision_language_model_are_what_its_card_says():
    page = (ROOT / "docs" / "zoo.md").read_text()
    section = page.split("## The vision-language model")[1].split("How far this goes")[0]
    card = read_card(ZOO / "llava-p8")
    rows = {
        cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line)
    }
    titles = {
        "up to four objects": "captions",
        "at most two": "captions_few_objects",
        "masks": "masks",
        "heatmaps": "heatmaps",
    }
    for title, group in titles.items():
        assert rows[title] == [f"{100 * value:.1f}" for value in card["measured"][group].values()], title
    assert f"{card['cpu_seconds']} CPU" in section


# -- rosetta.md


@pytest.mark.parametrize(("spec", "others"), [(MineRosettaSpec, OverZoo), (InvertSpec, Cell)])
def test_the_page_of_shared_units_has_every_field_of_its_own(spec, others):
    page = (ROOT / "docs" / "rosetta.md").read_text()
    own = set(spec.model_fields) - set(others.model_fields) - {"kind"}
    assert {name for name in own if not re.search(rf"^\|[^|]*`{name}`", page, re.M)} == set()


# -- explain.md


@pytest.mark.parametrize("spec", [ExplainSpec, ScoreExplanationsSpec, MapExplanationsSpec])
def test_the_page_of_explanations_has_every_field_of_its_own(spec):
    page = (ROOT / "docs" / "explain.md").read_text()
    own = set(spec.model_fields) - set(OverModels.model_fields) - {"kind", "clip"}
    assert {name for name in own if not re.search(rf"^\|[^|]*`{name}`", page, re.M)} == set()


def test_the_page_of_explanations_has_every_table():
    page = (ROOT / "docs" / "explain.md").read_text()
    assert {table.name for table in EXPLANATIONS if f"`{table.name}`" not in page} == set()


if __name__ == "__main__":
    print("\n".join(zoo_rows()))
