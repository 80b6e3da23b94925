"""One forward pass with hooks: reads tensors where they pass, edits them first, stops when nothing more is wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from miclip_core.zoo.attention import CHAIN, recompute
from miclip_core.zoo.edits import Edit, apply_edits
from miclip_core.zoo.sitemap import Entry, Family, Native, argument, argument_key, element
from schemas.errors import HookNeverFired, UnknownSite, UnsupportedBlock
from schemas.models import ModelFacts

Deliver = Callable[[str, Tensor, bool], None]
"""Called with (path, whole tensor, is it the value before edits)."""


class _Enough(Exception):
    """Raised inside a hook to stop the forward; never leaves `Capture.run`."""


def split_block(path: str) -> tuple[str, int | None]:
    """`z.5` -> (z, 5); a path without a last number -> (path, None)."""
    head, dot, last = path.rpartition(".")
    return (head, int(last)) if dot and last.isdigit() else (path, None)


@dataclass(eq=False)
class Capture:
    """The plan of one forward: which native sites are read, which sites are edited, who gets the values.

    native: paths to read where they pass. edits: by path. raw: paths whose value before edits is wanted too.
    deliver: receives every value once. stop: end the forward as soon as everything wanted has passed.
    """

    facts: ModelFacts
    family: Family
    entries: Mapping[str, Entry]
    native: set[str]
    edits: Mapping[str, Sequence[Edit]]
    raw: set[str]
    deliver: Deliver
    stop: bool = True
    heads_wanted: set[int] = field(default_factory=set)
    _values: dict[str, Tensor] = field(default_factory=dict)
    _needed: set[str] = field(default_factory=set)
    _pending: set[str] = field(default_factory=set)
    _calls: dict[tuple[nn.Module, str], int] = field(default_factory=lambda: defaultdict(int))

    def run(self, forward: Callable[[], Any]) -> None:
        """Run `forward` under hooks; hooks are gone afterwards, whatever happens.

        Raises:
            HookNeverFired: a wanted site produced nothing, or its module ran another number of times than declared.
            UnknownSite: an edit of a site that cannot be edited.
        """
        points, self._needed = self._points(), self._needed_by_edits()
        with ExitStack() as stack:
            for module, wanted in points.items():
                self._hook(stack, module, wanted)
            try:
                forward()
            except _Enough:
                return
        self._check_fired(points)

    # -------------------------------------------------------------- which module serves which sites

    def _points(self) -> dict[nn.Module, list[tuple[str, Native]]]:
        """Module -> the sites it serves, each in declared order; also decides what has to pass before we may stop."""
        paths = set(self.native)
        for path, edits in self.edits.items():
            if edits:
                paths |= self._editing_paths(path)
        points: dict[nn.Module, list[tuple[str, Native]]] = defaultdict(list)
        for layer in self._edited_attention():  # first: an edit of attn_out sees what the edited heads give
            points[self.family.blocks[layer].attention.module].append(
                (f"attention.{layer}", self.family.blocks[layer].attention)
            )
            paths.add(f"attention.{layer}")
        for path in (path for path in self.entries if path in paths):
            entry = self.entries[path]
            assert isinstance(entry, Native)
            points[entry.module].append((path, entry))
        self._pending = paths
        return points

    def _editing_paths(self, path: str) -> set[str]:
        """The native sites that an edit of `path` needs to see."""
        name, block = split_block(path)
        if path in self.family.sums:
            return set(self.family.sums[path])
        if name in CHAIN and block is not None and self.family.blocks:
            if self.family.blocks[block].math is None:
                raise UnsupportedBlock(
                    f"{path}: {self.facts.model} has no exact rule for this attention; edit attn_out.{block}"
                )
            return {self.family.blocks[block].attention_input}
        entry = self.entries[path]
        if not isinstance(entry, Native) or not entry.editable:
            raise UnknownSite(
                f"{path}: {self.facts.model} computes this site from others, so it cannot be edited; "
                "edit what it is computed from"
            )
        return {path}

    def _edited_attention(self) -> list[int]:
        blocks = {split_block(path)[1] for path, edits in self.edits.items() if edits and split_block(path)[0] in CHAIN}
        return sorted(block for block in blocks if block is not None)

    # -------------------------------------------------------------- hooks

    def _hook(self, stack: ExitStack, module: nn.Module, wanted: list[tuple[str, Native]]) -> None:
        inputs = [(path, entry) for path, entry in wanted if entry.io == "input"]
        outputs = [(path, entry) for path, entry in wanted if entry.io == "output"]
        if inputs:

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                return self._before(module, inputs, args, kwargs)

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        if outputs:

            def after(module: nn.Module, args: Any, output: Any) -> Any:
                return self._after(module, outputs, output)

            stack.callback(module.register_forward_hook(after).remove)

    def _before(self, module: nn.Module, wanted: list[tuple[str, Native]], args: Any, kwargs: dict[str, Any]) -> Any:
        call = self._count(module, "input")
        for served in _by_pick(wanted, call):
            native = served[0][1]
            key, old = argument_key(native, args, kwargs), argument(native, args, kwargs)
            new = self._pass(served, old)
            if new is old:
                continue
            if isinstance(key, int):
                args = (*args[:key], new, *args[key + 1 :])
            else:
                kwargs = {**kwargs, key: new}
        return args, kwargs

    def _after(self, module: nn.Module, wanted: list[tuple[str, Native]], output: Any) -> Any:
        call = self._count(module, "output")
        for served in _by_pick(wanted, call):
            native = served[0][1]
            old = element(native, output)
            new = self._pass(served, old)
            if new is not old:
                output = new if native.pick is None else _replaced(output, native.pick, new)
        return output

    def _count(self, module: nn.Module, io: str) -> int:
        self._calls[module, io] += 1
        return self._calls[module, io] - 1

    # -------------------------------------------------------------- one value on its way

    def _pass(self, served: list[tuple[str, Native]], value: Tensor) -> Tensor:
        """Edit, then hand out, the value that serves these sites; returns what the forward goes on with."""
        if not isinstance(value, Tensor):
            path, entry = served[0]
            raise HookNeverFired(
                f"{path}: {type(entry.module).__name__} of {self.facts.model} passes a {type(value).__name__}, not a tensor"
            )
        for path, entry in served:
            value = self._edited(path, entry, value)
        for path, entry in served:
            if path in self.native or path in self._needed:
                seen = _read(entry, value)
                if path in self._needed:  # all others may be dropped by whoever receives them
                    self._values[path] = seen
                if path in self.native:
                    self.deliver(path, seen, False)
            self._pending.discard(path)
        if self.stop and not self._pending:
            raise _Enough
        return value

    def _edited(self, path: str, entry: Native, value: Tensor) -> Tensor:
        name, block = split_block(path)
        if name == "attention" and block is not None and path not in self.entries:
            return self._attention(block, value)
        if path in self.raw and path not in self.family.sums:
            self.deliver(path, _read(entry, value), True)
        steps: list[Callable[[Tensor], Tensor]] = []
        if self.edits.get(path) and path not in self.family.sums:
            steps.append(lambda seen: apply_edits(self.facts.site(path), seen, self.edits[path]))
        for total, (base, added) in self.family.sums.items():
            if added == path and self.edits.get(total):
                steps.append(partial(self._edit_sum, total, base))
        if not steps:
            return value
        new = entry.read(value) if entry.read else value
        for step in steps:
            new = step(new)
        return entry.write(value, new) if entry.write else new

    def _edit_sum(self, total: str, base: str, added: Tensor) -> Tensor:
        """Edit `base + added` by changing what is added; an edit that changes nothing leaves it bit for bit."""
        before = self._values[base] + added
        if total in self.raw:
            self.deliver(total, before, True)
        return added + (apply_edits(self.facts.site(total), before, self.edits[total]) - before)

    def _attention(self, block: int, output: Tensor) -> Tensor:
        """The attention's output, computed again from its input with the edits of its inner steps."""
        parts = self.family.blocks[block]
        assert parts.math is not None

        def edit(name: str, value: Tensor) -> Tensor:
            path = f"{name}.{block}"
            if path in self.raw:
                self.deliver(path, value, True)
            edits = self.edits.get(path, ())
            value = apply_edits(self.facts.site(path), value, edits) if edits else value
            self.deliver(path, value, False)
            return value

        heads = bool(self.edits.get(f"head_result.{block}")) or block in self.heads_wanted
        new, _ = recompute(parts.math, self._values[parts.attention_input], edit, heads)
        raw = parts.attention
        return raw.write(output, new.to(output.dtype)) if raw.write else new.to(output.dtype)

    def _needed_by_edits(self) -> set[str]:
        needed = {base for total, (base, _) in self.family.sums.items() if self.edits.get(total)}
        return needed | {self.family.blocks[layer].attention_input for layer in self._edited_attention()}

    # -------------------------------------------------------------- afterwards

    def _check_fired(self, points: Mapping[nn.Module, list[tuple[str, Native]]]) -> None:
        if self._pending:
            names = ", ".join(sorted(self._pending))
            raise HookNeverFired(
                f"{names}: nothing passed there in a forward of {self.facts.model}; the module's weights are used "
                "without calling it, or it was skipped. Ask for another site of the same block"
            )
        for module, wanted in points.items():
            for path, entry in wanted:
                ran = self._calls[module, entry.io]
                if ran != entry.calls:
                    raise HookNeverFired(
                        f"{path}: {type(module).__name__} of {self.facts.model} ran {ran} times in one forward, "
                        f"declared {entry.calls}"
                    )


def _by_pick(wanted: list[tuple[str, Native]], call: int) -> list[list[tuple[str, Native]]]:
    """The sites of this call, grouped by the tensor that they share."""
    groups: dict[int | str | None, list[tuple[str, Native]]] = defaultdict(list)
    for path, entry in wanted:
        if entry.call == call:
            groups[entry.pick].append((path, entry))
    return list(groups.values())


def _read(entry: Native, value: Tensor) -> Tensor:
    seen = entry.read(value) if entry.read else value
    return seen.clone() if entry.clone else seen


def _replaced(output: Any, pick: int | str, new: Tensor) -> Any:
    """A copy of a returned tuple or object with one element changed."""
    if isinstance(pick, int):
        return type(output)((*output[:pick], new, *output[pick + 1 :]))
    return type(output)(**{**output, pick: new})
