"""YAML 1.2 to plain data that remembers where each value stands, and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from schemas.errors import BadSpec

MAX_NODES = 100_000
"""More values than this is no spec but an alias bomb."""
Path = tuple[Any, ...]


class Place(NamedTuple):
    """Where a value was written: a line and column (1-based) of a file, or an option of the command line."""

    source: str
    line_column: tuple[int, int] | None

    def __str__(self) -> str:
        return f"{self.source}:{self.line_column[0]}:{self.line_column[1]}" if self.line_column else self.source


@dataclass
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the place of every field in it."""

    name: str
    data: Any
    places: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path) -> Place:
        """Where this field is, or the nearest one around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(self.name, (1, 1)))


def read_yaml(text: str, name: str) -> Document:
    """Read one document; tags that build objects, duplicate keys and keys that are no text are refused.

    Raises:
        BadSpec: with file, line and column.
    """
    document = Document(name, None)
    node = _compose(text, name)
    if node is not None:
        document.data = _Reader(document).read(node, ())
    return document


def read_value(text: str, name: str) -> Any:
    """One value as YAML, for an override; empty text is null. Raises BadSpec."""
    return read_yaml(text, name).data


def write_yaml(data: Any) -> str:
    """Block-style YAML of plain data; `read_yaml` gives the same data back."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Writer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 1000
    sink = io.StringIO()
    yaml.dump(data, sink)
    return sink.getvalue()


class _Writer(SafeRepresenter):
    """Writes text of several lines line by line, where YAML can."""

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Writer.add_representer(str, _Writer.represent_str)


def _compose(text: str, name: str) -> Node | None:
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(name, (mark.line + 1, mark.column + 1) if mark else (1, 1))
        problem = error.problem or error.context or "it is not YAML"
        tab = "; indent with spaces, YAML allows no tabs there" if "'\\t'" in str(problem) else ""
        raise BadSpec(f"{place}  {problem}{tab}") from None
    except (YAMLError, ValueError) as error:
        raise BadSpec(f"{name}:1:1  this is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise BadSpec(f"{name}:1:1  values are nested too deeply") from None


class _Reader:
    """Turns composed nodes into data, by the core rules of YAML 1.2; dates stay text."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._constructor = YAML(typ="safe", pure=True).constructor
        self._open: list[int] = []
        self._nodes = 0

    def read(self, node: Node, path: Path) -> Any:
        self._document.places.setdefault(path, self._place(node))
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise BadSpec(f"{self._document.name}: more than {MAX_NODES:,} values; aliases repeat each other")
        if id(node) in self._open:
            raise BadSpec(f"{self._place(node)}  {_dotted(path)}: an alias contains itself")
        self._open.append(id(node))
        try:
            return self._read(node, path)
        finally:
            self._open.pop()

    def _read(self, node: Node, path: Path) -> Any:
        if isinstance(node, SequenceNode):
            return [self.read(item, (*path, number)) for number, item in enumerate(node.value)]
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if str(key_node.tag) == "tag:yaml.org,2002:merge":
                for source in self._merge_sources(value_node):
                    merged = {**self._mapping(source, path), **merged}
                continue
            key = self._key(key_node, path)
            if key in data:
                first = self._document.places[(*path, key)].line_column
                before = f" in line {first[0]}" if first else ""
                raise BadSpec(f"{self._place(key_node)}  {_dotted((*path, key))}: this key stands{before} already")
            self._document.places[(*path, key)] = self._place(key_node)
            data[key] = self.read(value_node, (*path, key))
        return {**merged, **data}

    def _merge_sources(self, node: Node) -> Iterator[MappingNode]:
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(source, MappingNode):
                raise BadSpec(f"{self._place(source)}  <<: expected an alias of a mapping, or a list of them")
            yield source

    def _key(self, node: Node, path: Path) -> str:
        if not isinstance(node, ScalarNode) or not str(node.tag).endswith(":str"):
            found = node.value if isinstance(node, ScalarNode) else "a list or mapping"
            raise BadSpec(f"{self._place(node)}  {_dotted(path)}: key {found!r} is not text; put it in quotes")
        return str(node.value)

    def _scalar(self, node: Node, path: Path) -> Any:
        tag = str(node.tag)
        if tag == "tag:yaml.org,2002:timestamp":
            return str(node.value)
        if tag.removeprefix("tag:yaml.org,2002:") not in ("str", "int", "float", "bool", "null"):
            raise BadSpec(f"{self._place(node)}  {_dotted(path)}: tag {tag} is not allowed; write a plain value")
        try:
            value = self._constructor.construct_object(node)
        except (ConstructorError, ValueError) as error:
            raise BadSpec(f"{self._place(node)}  {_dotted(path)}: {str(error).splitlines()[0]}") from None
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            raise BadSpec(f"{self._place(node)}  {_dotted(path)}: found {node.value}, expected a finite number")
        return value

    def _place(self, node: Node) -> Place:
        return Place(self._document.name, (node.start_mark.line + 1, node.start_mark.column + 1))


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the document"
