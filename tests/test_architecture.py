"""Who may import whom, what the light verbs may load, and which folders there are: read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.published import SPEC, publish_numbers

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "miclip_core", "jobs", "cluster")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "miclip_core": {"schemas", "miclip_core"},
    "jobs": {"schemas", "miclip_core", "jobs"},
    "cluster": {"schemas", "jobs", "cluster"},
}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def imports(path: Path, annotations: bool = False) -> tuple[str, ...]:
    """Every module that a file imports, anywhere in it; those for annotations alone only if asked for."""
    return tuple(_imports(path, annotations))


def _imports(path: Path, annotations: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not annotations:
            skipped.update(inner for child in node.body for inner in ast.walk(child))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def importers(package: str) -> set[str]:
    return {name(path) for path in MODULES if any(i.split(".")[0] == package for i in imports(path))}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        ours = {i.split(".")[0] for i in imports(path, annotations=True)} & {*PACKAGES, "tests", "miclip"}
        assert ours <= MAY_IMPORT[package], name(path)


def test_schemas_import_pydantic_and_pyarrow_only() -> None:
    allowed = {*sys.stdlib_module_names, "schemas", "pydantic", "pyarrow"}
    for path in (ROOT / "schemas").rglob("*.py"):
        assert {i.split(".")[0] for i in imports(path)} <= allowed, name(path)


def test_ray_is_imported_inside_its_own_folder_only() -> None:
    assert all(path.startswith("cluster/on_ray/") for path in importers("ray"))


@pytest.mark.parametrize("package", ["s3fs", "open_clip", "duckdb", "ruamel"])
def test_a_library_with_moods_is_imported_in_one_module(package: str) -> None:
    assert len(importers(package)) == 1, importers(package)


def test_plans_know_no_torch() -> None:
    for path in (ROOT / "jobs").rglob("plan.py"):
        code = f"import sys, {'.'.join(path.relative_to(ROOT).with_suffix('').parts)}\nprint('torch' in sys.modules, 'ray' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert found.stdout.split() == ["False", "False"], name(path)


def test_job_kinds_do_not_import_each_other() -> None:
    kinds = {path.name for path in (ROOT / "jobs").iterdir() if (path / "plan.py").exists()}
    for kind in kinds:
        for path in (ROOT / "jobs" / kind).rglob("*.py"):
            others = {i.split(".")[1] for i in imports(path) if i.startswith("jobs.")} & kinds
            assert others <= {kind}, name(path)


def test_the_core_neither_prints_nor_knows_stores() -> None:
    for path in (ROOT / "miclip_core").rglob("*.py"):
        calls = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
        assert "print" not in calls, name(path)
        assert not {"ray", "s3fs", "boto3", "duckdb"} & {i.split(".")[0] for i in imports(path)}, name(path)


def test_every_module_opens_with_what_it_owns() -> None:
    for path in MODULES:
        if not path.read_text().strip():
            continue
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text and re.match(r"[^\n]+[.!?]?$", text.splitlines()[0]), name(path)


def test_every_public_function_and_class_of_schemas_jobs_and_cluster_has_a_docstring() -> None:
    without = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                without.append(f"{name(path)}: {node.name}")
    assert not without


def test_pickles_are_never_loaded_in_full() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert words.get("weights_only") == "True", f"{name(path)}:{node.lineno}"


def test_bytes_in_memory_are_never_read_by_a_scanner_that_outlives_the_call() -> None:
    """`pq.read_table` frees Python objects in a thread of Arrow's: a process that ends at that moment is aborted."""
    users = {
        name(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pq.read_table"
    }
    assert users == {"cluster/read.py"}  # of a notebook, by path, for its filters


# ---------------------------------------------------------------- what the light verbs load

HEAVY = ("torch", "ray", "open_clip", "transformers", "timm", "s3fs", "torchvision")


def loaded_by(words: list[str], *also: str) -> tuple[set[str], str]:
    """The heavy packages that a verb has imported when it ends, and what it printed."""
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: sys.stderr.write('LOADED ' + ' '.join(p for p in {(*HEAVY, *also)!r} if p in sys.modules)))\n"
        f"sys.argv = ['miclip', *{words!r}]\nfrom cluster.cli import main\nmain()"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    print(f"miclip {' '.join(words)}: {time.perf_counter() - start:.2f} s")
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split()), done.stdout


def test_help_loads_no_library_of_weight() -> None:
    assert loaded_by(["--help"], "pyarrow", "pydantic", "duckdb")[0] == set()


@pytest.mark.parametrize("verb", ["validate", "plan", "status", "watch", "cancel", "tables", "sql", "report"])
def test_light_verbs_load_neither_torch_nor_ray(verb: str, tmp_path: Path) -> None:
    publish_numbers(tmp_path / "lake")
    (tmp_path / "spec.yaml").write_text(SPEC + "store: lake\n")
    spec, lake = str(tmp_path / "spec.yaml"), str(tmp_path / "lake")
    words = {
        "validate": ["validate", spec],
        "plan": ["plan", spec, "--json"],
        "status": ["status", "numbers-00001", "--store", lake],
        "watch": ["watch", "numbers-00001", "--store", lake],
        "cancel": ["cancel", "numbers-00001", "--store", lake],
        "tables": ["tables", "--store", lake],
        "sql": ["sql", "SELECT count(*) FROM selftest", "--store", lake],
        "report": ["report", "--store", lake, "--to", str(tmp_path / "page.html")],
    }[verb]
    assert loaded_by(words)[0] == set()


def test_planning_an_inspected_extract_spec_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    """Facts are inspected once with torch, here in a process of its own; after that a plan is plain arithmetic."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "kind: extract\nstore: lake\nmodel: demo:clip-p8\nimages: {ref: 'world:seed=0,n=6'}\n"
        "sites: ['resid_post.-1@cls']\noutputs: [activations, embeddings]\n"
    )
    loaded_by(["plan", str(spec), "--inspect"])
    loaded, text = loaded_by(["plan", str(spec), "--json"])
    assert loaded == set()
    assert '"to_do": 2' in text and '"not_planned": []' in text
    assert loaded_by(["validate", str(spec)])[0] == set()
