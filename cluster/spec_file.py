"""From a YAML file and overrides to a valid pipeline, or to errors that say file, line, field, found and expected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from cluster.secrets import holds_a_secret, names_a_secret
from cluster.spec_errors import Path as FieldPath
from cluster.spec_errors import Problem, explain
from cluster.yaml_text import Document, Place, read_value, read_yaml, write_yaml
from schemas.errors import BadSpec, UsageError
from schemas.job_files import AnySpec, as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.refs import SAE_SOURCES
from schemas.specs import JobSpec

_NO_SECRETS = (
    "looks like a credential, which would be kept with the run; take it out and set it in the environment "
    "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN) or use the machine's role"
)
_PATHS = re.compile(rf"^((?:folder|glob|parquet|wds|hf|file|{'|'.join(SAE_SOURCES[1:])}):)(?!/|s3://)(.+)$")


@dataclass(frozen=True)
class SpecFile:
    """A valid spec: the pipeline, and its text as the run will keep it."""

    pipeline: PipelineSpec
    text: str
    document: Document

    @contextmanager
    def placed(self) -> Iterator[None]:
        """What is only found out later about a model, site or image set of this file is refused with its place too."""
        try:
            yield
        except UsageError as error:
            raise type(error)("\n".join(map(self._with_place, str(error).splitlines()))) from error

    def _with_place(self, message: str) -> str:
        """A message opens with a stage or a field, else with a text of one; this field, or the stage, is the place."""
        path, text = self._opening(message)
        stage = path if len(path) == 2 and path[0] == "stages" else ()
        if path == stage:
            about = text.removeprefix("images ").removeprefix("concepts ").split(": ")[0]
            if leaf := self._find_leaf(about, stage):
                path, text = leaf, text if not stage or leaf[:2] == stage else f"{'.'.join(stage)}: {text}"
            elif text == message:
                return message
        field = ".".join(map(str, path))
        place = self.document.place(self._where_written(path))
        return f"{place}  {field}: {text}" if field else f"{place}  {text}"

    def _opening(self, message: str) -> tuple[FieldPath, str]:
        """The field or stage that a message opens with, as this file names it, and what follows; nothing if it opens otherwise."""
        opening, _, text = message.partition(": ")
        path = tuple(int(part) if part.isdigit() else part for part in opening.split("."))
        if path[0] == "stages" and len(path) > 1:
            return (path if "stages" in self.document.data else path[2:]), text  # a file of one job names no stage
        return (path, text) if path in self.document.places else ((), message)

    def _find_leaf(self, about: str, stage: FieldPath) -> FieldPath:
        """The field that holds this text, of the stage rather than of the whole file; empty if none does."""
        leaves = [(path, value) for path, value in _leaves(self.document.data, ()) if isinstance(value, str)]
        fits = [p for p, v in leaves if v == about] + [p for p, v in leaves if about and _ref_of(v, about)]
        own = [path for path in fits if path[:2] == stage]
        return next(iter(own or [path for path in fits if not stage or path[0] != "stages"]), ())

    def _where_written(self, path: FieldPath) -> FieldPath:
        """A field that its stage leaves out may be given for all stages, as images and clip are."""
        given_for_all = len(path) > 2 and path[:3] not in self.document.places and path[2:3] in self.document.places
        return path[2:] if given_for_all else path


def _ref_of(value: str, about: str) -> bool:
    """Whether a message about `about` speaks of this value: all of it but a format before it, or a part after it."""
    return value.endswith(f":{about}") or (value.startswith(about) and value[len(about) : len(about) + 1] in "@:/")


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(AnySpec)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec file, for editors."""
    schema = _adapter().json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "miclip spec", **schema}


def read_spec_file(path: str | Path, overrides: Sequence[str] = (), limit: int | None = None) -> SpecFile:
    """Read, override and validate a spec file.

    overrides: `a.b.c=value`, the value as YAML. limit: sets `limit` of every image set.

    Raises:
        BadSpec: with every problem found, each with file, line, column, field, found and expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadSpec(f"{path}: no such file; expected a YAML spec") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadSpec(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return parse_spec(text, str(path), overrides, limit, folder=path.resolve().parent)


def parse_spec(
    text: str, name: str, overrides: Sequence[str] = (), limit: int | None = None, folder: Path | None = None
) -> SpecFile:
    """`read_spec_file` of a text; `name` stands in messages, `folder` is where relative paths start."""
    document = read_yaml(text, name)
    given = json.dumps(document.data, sort_keys=True)
    if folder is not None:
        _name_after_file(document)
    for override in overrides:
        _override(document, override)
    if limit is not None:
        _set_limit(document, limit)
    _refuse_secrets(document, text)
    if folder is not None:
        document.data = _make_absolute(document.data, folder)
    spec = _validate(document)
    changed = json.dumps(document.data, sort_keys=True) != given
    return SpecFile(spec, write_yaml(document.data) if changed else text, document)


def _validate(document: Document) -> PipelineSpec:
    data = document.data
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {'list' if isinstance(data, list) else 'single value'}"
        raise BadSpec(f"{document.name}:1:1  found {found}, expected fields such as kind, name and stages")
    try:
        return as_pipeline(_adapter().validate_json(json.dumps(data)))
    except ValidationError as error:
        problems = explain(error, data, _adapter())
        problems.sort(key=lambda p: document.place(p.path).line_column or (0, 0))
        raise BadSpec("\n".join(_line(document, p) for p in problems)) from None


def _line(document: Document, problem: Problem) -> str:
    place = document.place(problem.path)
    field = ".".join(map(str, problem.path))
    return f"{place}  {field}: {problem.text}" if field else f"{place}  {problem.text}"


def _name_after_file(document: Document) -> None:
    """A single job without a name is called as its file, so that two of them are two pipelines."""
    data = document.data
    stem = re.sub(r"[^a-z0-9_-]+", "-", Path(document.name).stem.lower()).strip("-_")[:41]
    if isinstance(data, dict) and data.get("kind") != "pipeline" and "name" not in data and stem[:1].isalpha():
        data["name"] = stem


# ---------------------------------------------------------------- overrides


def _override(document: Document, override: str) -> None:
    """Set one value; containers on the way are made where only validation can tell whether they belong there."""
    dotted, equals, written = override.partition("=")
    path = tuple(int(p) if p.lstrip("-").isdigit() else p for p in dotted.strip().split("."))
    if not equals or "" in path:
        raise BadSpec(f"--set {dotted}: expected path.to.field=value, for example stages.acts.batch_size=64")
    place = Place(f"--set {dotted}", None)
    inside: Any = document.data
    for depth, part in enumerate(path[:-1]):
        inside = _step(inside, path[: depth + 1], part, place)
    last = path[-1]
    value = read_value(written, str(place))
    if isinstance(inside, list) and not (isinstance(last, int) and -len(inside) <= last < len(inside)):
        raise BadSpec(f"{place}: {'.'.join(map(str, path[:-1]))} is a list of {len(inside)}; there is no item {last!r}")
    if not isinstance(inside, (dict, list)):
        raise BadSpec(f"{place}: {'.'.join(map(str, path[:-1]))} is a single value and has no field {last!r}")
    key: Any = last if isinstance(inside, list) else str(last)
    inside[key] = value
    written_path = tuple(p if isinstance(p, int) else str(p) for p in path)
    below = [p for p in document.places if len(p) > len(path) and p[: len(path)] == written_path]
    for replaced in below:
        del document.places[replaced]
    document.places[written_path] = place


def _step(inside: Any, path: tuple[Any, ...], part: Any, place: Place) -> Any:
    if isinstance(inside, list) and isinstance(part, int) and -len(inside) <= part < len(inside):
        return inside[part]
    if isinstance(inside, dict) and str(part) in inside and inside[str(part)] is not None:
        return inside[str(part)]
    if isinstance(inside, dict) and path[:-1] != ("stages",):
        return inside.setdefault(str(part), {}) or inside.update({str(part): {}}) or inside[str(part)]
    there = ", ".join(inside) if isinstance(inside, dict) else "none"
    raise BadSpec(f"{place}: the spec has no {'.'.join(map(str, path))}; there are {there}")


def _set_limit(document: Document, limit: int) -> None:
    data = document.data if isinstance(document.data, dict) else {}
    stages: dict[str, Any] = data["stages"] if isinstance(data.get("stages"), dict) else {}
    overrides = data["overrides"] if isinstance(data.get("overrides"), list) else []
    settings = [entry.get("set") for entry in overrides if isinstance(entry, dict)]
    holders = [data, *(s for s in (*stages.values(), *settings) if isinstance(s, dict))]
    found = [holder["images"] for holder in holders if isinstance(holder.get("images"), dict)]
    if not found:
        raise BadSpec(f"--limit {limit}: no stage of {document.name} reads images, so there is nothing to cut")
    for images in found:
        images["limit"] = limit
    for path in [("images", "limit"), *(("stages", name, "images", "limit") for name in stages)]:
        document.places[path] = Place(f"--limit {limit}", None)


# ---------------------------------------------------------------- secrets and paths


def _refuse_secrets(document: Document, text: str) -> None:
    """Refuse what looks like a credential, without repeating it."""
    for path, value in _leaves(document.data, ()):
        named = [n for n, p in enumerate(path) if isinstance(p, str) and names_a_secret(p) and not _is_ours(path, n)]
        if named or (isinstance(value, str) and holds_a_secret(value)):
            where = path[: named[0] + 1] if named else path
            raise BadSpec(f"{document.place(where)}  {'.'.join(map(str, where))}: this {_NO_SECRETS}")
    for number, line in enumerate(text.splitlines(), 1):
        if holds_a_secret(line):
            raise BadSpec(f"{document.name}:{number}:1  a text in this line {_NO_SECRETS}")


def _is_ours(path: tuple[Any, ...], position: int) -> bool:
    """Stages are named by people, and patch-tokens is a good name for one; and a spec has fields like batch_tokens."""
    return (position == 1 and path[0] == "stages") or path[position] in _fields()


@cache
def _fields() -> frozenset[str]:
    """The names of the fields of every kind of job."""
    return frozenset(name for job in get_args(JobSpec) for name in job.model_fields)


def _leaves(data: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    if not items:
        yield path, data
    for key, value in items:
        yield from _leaves(value, (*path, key))


def _make_absolute(data: Any, folder: Path) -> Any:
    """Local paths of image sets, labels, concepts, SAEs and the store start where the spec file is."""
    if not isinstance(data, dict):
        return data
    data = dict(data)
    if isinstance(data.get("store"), str) and "://" not in data["store"]:
        data["store"] = str(folder / Path(data["store"]).expanduser())
    if isinstance(data.get("images"), dict):
        data["images"] = {
            key: _absolute(value, folder) if key in ("ref", "labels") else value
            for key, value in data["images"].items()
        }
    if "concepts" in data:
        data["concepts"] = _absolute(data["concepts"], folder)
    if isinstance(saes := data.get("saes"), (str, list)):
        data["saes"] = [_absolute(ref, folder) for ref in ([saes] if isinstance(saes, str) else saes)]
    if isinstance(data.get("stages"), dict):
        data["stages"] = {name: _make_absolute(stage, folder) for name, stage in data["stages"].items()}
    if isinstance(data.get("matrix"), dict):
        data["matrix"] = {
            axis: [_make_absolute({axis: value}, folder)[axis] for value in values]
            if axis in ("concepts", "saes") and isinstance(values, list)
            else values
            for axis, values in data["matrix"].items()
        }
    if isinstance(data.get("overrides"), list):
        data["overrides"] = [
            {**entry, "set": _make_absolute(entry["set"], folder)}
            if isinstance(entry, dict) and "set" in entry
            else entry
            for entry in data["overrides"]
        ]
    return data


def _absolute(value: Any, folder: Path) -> Any:
    match = _PATHS.match(value) if isinstance(value, str) else None
    return f"{match[1]}{folder / Path(match[2]).expanduser()}" if match else value
