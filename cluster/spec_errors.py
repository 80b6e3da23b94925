"""Pydantic's view of what is wrong with a spec, in the words of the person who wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from schemas.matrix import NotTaken
from schemas.words import any_of, nearest

Path = tuple[Any, ...]
_PREFIX = re.compile(r"^((?:stages|matrix|exclude|overrides)(?:\.[\w.-]+)?): (.*)$", re.DOTALL)


class Problem(NamedTuple):
    """One thing to change: the field as written, and what was found and expected."""

    path: Path
    text: str


def explain(error: ValidationError, data: Any, adapter: TypeAdapter[Any]) -> list[Problem]:
    """One problem per field, in the order of the fields; alternatives of a union become one."""
    models = _models(adapter._type)
    by_path: dict[Path, list[dict[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_written_path(detail["loc"], data), []).append(dict(detail))
    # what is wrong inside a list says more than that the list as a whole does not fit
    paths = [p for p in by_path if not any(q != p and q[: len(p)] == p and _whole(by_path[p]) for q in by_path)]
    return [problem for path in paths for problem in _problems(path, by_path[path], data, models)]


def _whole(details: Iterable[dict[str, Any]]) -> bool:
    return all(d["type"].endswith(("_type", "too_short")) for d in details)


def _written_path(loc: tuple[Any, ...], data: Any) -> Path:
    """The location without the union tags that pydantic puts in."""
    path: list[Any] = []
    inside = data
    for position, part in enumerate(loc):
        if (isinstance(inside, dict) and part in inside) or (
            isinstance(inside, list) and isinstance(part, int) and part < len(inside)
        ):
            path.append(part)
            inside = inside[part]
        elif isinstance(inside, dict) and position == len(loc) - 1 and part not in (inside.get("kind"), "[key]"):
            path.append(part)  # a field that is missing
    return tuple(path)


def _problems(path: Path, details: list[dict[str, Any]], data: Any, models: list[type[BaseModel]]) -> Iterator[Problem]:
    cause = details[0].get("ctx", {}).get("error")
    if not isinstance(cause, NotTaken):
        yield _problem(path, details, data, models)
        return
    place = _parts(cause.place)
    for inside, text in explain(cause.error, cause.data, TypeAdapter(cause.kind)):
        written = (*place, *inside)
        below = inside and _written_path(written, data) == written  # as fields of an override are
        field = "" if below else ".".join(map(str, inside))
        yield Problem(written if below else place, ": ".join(word for word in (cause.about, field, text) if word))


def _parts(dotted: str) -> Path:
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


def _problem(path: Path, details: list[dict[str, Any]], data: Any, models: list[type[BaseModel]]) -> Problem:
    detail = details[0]
    kind = detail["type"]
    if kind == "extra_forbidden":
        fields = _fields_at(path[:-1], data, models)
        return Problem(path, f"unknown field{nearest(path[-1], fields) or '; there are ' + ', '.join(fields)}")
    if kind == "missing":
        return Problem(path, "this field is missing")
    if kind == "union_tag_invalid":
        expected = [t.strip(" '") for t in detail["ctx"]["expected_tags"].split(",")]
        tag = detail["ctx"]["tag"]
        return Problem((*path, "kind"), f"found {_found(tag)}, expected {any_of(expected)}{nearest(tag, expected)}")
    if kind == "union_tag_not_found":
        return Problem(path, f"field kind is missing; expected {any_of(sorted(_kinds(models)))}")
    if kind in ("value_error", "assertion_error"):
        text = str(detail["ctx"]["error"])
        prefix = _PREFIX.match(text)
        if prefix is None:
            return Problem(path, text)
        return Problem(_parts(prefix[1]), prefix[2])
    if detail["loc"] and detail["loc"][-1] == "[key]":
        expected = _literals([detail]) or [_expected(detail)]
        return Problem(path, f"unknown field, expected {any_of(expected)}{nearest(path[-1], expected)}")
    literals = _literals(details)
    expected = literals or list(dict.fromkeys(_expected(d) for d in details))
    guess = nearest(detail["input"], literals)
    return Problem(path, f"found {_found(detail['input'])}, expected {any_of(expected)}{guess}")


def _expected(detail: dict[str, Any]) -> str:
    if detail["type"] == "string_pattern_mismatch":
        return "a name of small letters, digits, - and _, starting with a letter, at most 41 long"
    if detail["type"] == "too_short":
        return f"at least {detail['ctx']['min_length']}"
    text = re.sub(r"^\w+ should (be|have|match) ", r"\1 ", detail["msg"]).removeprefix("be ")
    words = {
        "a valid string": "text",
        "a valid array": "a list",
        "a valid integer": "a whole number",
        "a valid number": "a number",
        "a valid boolean": "true or false",
        "an object": "fields below it",
    }
    return words.get(text, text)


def _literals(details: Iterable[dict[str, Any]]) -> list[str]:
    texts = [d["ctx"]["expected"] for d in details if d["type"] == "literal_error"]
    return [word.strip("' ") for text in texts for word in re.split(r",| or ", text) if word.strip("' ")]


def _found(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- which fields belong where


def _fields_at(path: Path, data: Any, models: list[type[BaseModel]]) -> list[str]:
    """Names of the fields that the model at this place has."""
    for part in path:
        models = _choose(models, data)
        data = data[part]
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [model for annotation in annotations for model in _models(annotation)] or models
    return list(dict.fromkeys(name for model in _choose(models, data) for name in model.model_fields))


def _choose(models: list[type[BaseModel]], data: Any) -> list[type[BaseModel]]:
    """Of a tagged union the member whose tag the data has."""
    kind = data.get("kind") if isinstance(data, dict) else None
    return [m for m in models if _kind_of(m) == kind] or models


def _kind_of(model: type[BaseModel]) -> Any:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _kinds(models: Iterable[type[BaseModel]]) -> set[str]:
    return {str(_kind_of(m)) for m in models if _kind_of(m)}


def _models(annotation: Any) -> list[type[BaseModel]]:
    return list(dict.fromkeys(_walk(annotation)))


def _walk(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated,):
        yield from _walk(get_args(annotation)[0])
    elif get_origin(annotation) is Union or get_args(annotation):
        for argument in get_args(annotation):
            yield from _walk(argument)
