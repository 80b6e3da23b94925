"""Which neuron encoders are the layers of one trace: those that differ in nothing but the number of the block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jobs.encoders import Encoder
from schemas.base import canonical_json
from schemas.errors import BadSpec
from schemas.models import ModelFacts
from schemas.refs import Site


class Layer(NamedTuple):
    """One layer of a trace: its number, and the encoder of its site."""

    number: int
    encoder: Encoder


Trace = tuple[Layer, ...]
"""Layers by number, each once, at least two."""


def find_traces(where: str, facts: ModelFacts, encoders: Sequence[Encoder]) -> tuple[Trace, ...]:
    """The traces that encoders make: sites as `resid_post.3@cls` and `resid_post.4@cls`, settings and all else the same.

    A vector behind all blocks (`embedding`, `logits`) is the last layer of every trace of its settings; such vectors have
    the numbers behind that of the last block, in the order of the forward pass.

    Raises:
        BadSpec: a site has no place among the layers or is the only layer of its kind, or two encoders of one site have
            the same variant and seed.
    """
    _check_names(where, facts, encoders)
    settings: dict[str, list[Encoder]] = {}
    for encoder in encoders:
        settings.setdefault(_all_but_site(encoder), []).append(encoder)
    return tuple(trace for same in settings.values() for trace in _traces(where, facts, same))


def _traces(where: str, facts: ModelFacts, encoders: Sequence[Encoder]) -> Iterator[Trace]:
    kinds: dict[str, list[Layer]] = {}
    last: list[Encoder] = []
    for encoder in encoders:
        site = Site.parse(encoder.site)
        kind, block = _split(site)
        if block is not None:
            kinds.setdefault(kind, []).append(Layer(block, encoder))
        elif _is_behind_blocks(facts, site):
            last.append(encoder)
        else:
            raise BadSpec(
                f"{where}: {encoder.site} has no place among the layers of {facts.model}; expected sites of blocks, such as "
                f"{_example(facts)}, and vectors behind them; choose them by sites"
            )
    order = [site.path for site in facts.sites]
    last.sort(key=lambda encoder: order.index(Site.parse(encoder.site).path))
    behind = [Layer(_last_block(facts) + 1 + place, encoder) for place, encoder in enumerate(last)]
    for kind, layers in (kinds or {"": []}).items():
        trace = (*sorted(layers, key=lambda layer: layer.number), *behind)
        _check(where, facts, kind, trace)
        yield trace


def _check(where: str, facts: ModelFacts, kind: str, trace: Trace) -> None:
    if len(trace) < 2:
        raise BadSpec(
            f"{where}: {trace[0].encoder.site} of {facts.model} is the only layer of its trace; expected at least two: "
            f"extract and align more sites such as {kind or _example(facts)}, or choose others by sites"
        )


def _check_names(where: str, facts: ModelFacts, encoders: Sequence[Encoder]) -> None:
    """Encoders of the same site must have different names in the tables."""
    seen: dict[tuple[str, str, int], Encoder] = {}
    for encoder in encoders:
        first = seen.setdefault((encoder.site, encoder.variant, encoder.seed), encoder)
        if first is not encoder:
            raise BadSpec(
                f"{where}.reads: align:{first.plan.digest} and align:{encoder.plan.digest} of {facts.model} are both "
                f"{encoder.variant} of seed {encoder.seed} at {encoder.site}, so no table could tell them apart; trace them in "
                "stages of their own"
            )


def _all_but_site(encoder: Encoder) -> str:
    stage = encoder.plan.stage
    params = {name: value for name, value in stage.params.items() if name != "site"}
    inputs = {name: value for name, value in stage.inputs.items() if name != "activations"}
    return canonical_json([params, inputs])


def _split(site: Site) -> tuple[str, int | None]:
    """`resid_post.3@cls` -> (`resid_post.*@cls`, 3), `conv.2.0.out@map` -> (`conv.*.0.out@map`, 2): the first number is the layer."""
    words = site.path.split(".")
    place = next((i for i, word in enumerate(words) if word.isdigit()), None)
    if site.is_module or place is None:
        return str(site), None
    kind = ".".join([*words[:place], "*", *words[place + 1 :]])
    return str(site).replace(site.path, kind, 1), int(words[place])


def _is_behind_blocks(facts: ModelFacts, site: Site) -> bool:
    """Whether it is one vector per image, made after the last block."""
    order = [other.path for other in facts.sites]
    in_blocks = [i for i, path in enumerate(order) if _split(Site(path=path))[1] is not None]
    return (
        not site.is_module
        and facts.site(site.path).layout == "vector"
        and order.index(site.path) > max(in_blocks, default=-1)
    )


def _last_block(facts: ModelFacts) -> int:
    numbers = [_split(Site(path=site.path))[1] for site in facts.sites]
    return max((number for number in numbers if number is not None), default=-1)


def _example(facts: ModelFacts) -> str:
    kinds = (_split(Site(path=site.path))[0] for site in reversed(facts.sites))
    return next((kind for kind in kinds if "*" in kind), "resid_post.*")
