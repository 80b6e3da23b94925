"""From a built model to its facts: site shapes are observed in a forward on the meta device, which computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from miclip_core.zoo.recipe import Built
from miclip_core.zoo.sitemap import Derived, Entry, Family, Native, argument, element, promote
from schemas.errors import UnknownSite, UnsupportedBlock
from schemas.models import LanguageFacts, ModelFacts, SiteFacts
from schemas.refs import Tokens


def describe_model(
    name: str,
    built: Built,
    family: Family,
    weights_sha256: str,
    files_sha256: str,
    revision: str | None,
    library_versions: dict[str, str],
    modules: Sequence[str] = (),
    language: LanguageFacts | None = None,
) -> ModelFacts:
    """All static facts of a model whose modules are on the meta device.

    Raises:
        UnknownSite: one of `modules` does not exist or its output has no recognisable layout.
        UnsupportedBlock: the model gives neither image embedding nor tokens.
    """
    observed = _observe(family)
    sites = [
        _site_facts(family, path, entry, observed.shapes[path])
        for path, entry in family.sites.items()
        if path in observed.shapes and not path.startswith("_")
    ]
    sites += [_module_facts(name, built.root, family, path) for path in modules]
    fields = (
        "n_blocks", "n_heads", "head_dim", "width", "mlp_width", "n_prefix", "has_cls", "grid", "patch", "input_hw", "norm_eps",
        "act_kind", "has_ln_pre", "has_layerscale", "has_inner_attn_norm", "pool", "final_norm_position",
    )  # fmt: skip
    return ModelFacts(
        model=name,
        family=family.name,
        weights_sha256=weights_sha256,
        files_sha256=files_sha256,
        revision=revision,
        library_versions=library_versions,
        embed_dim=family.latent or _embedding_width(name, family, sites),
        geometry=built.geometry,
        has_text=built.text is not None,
        classes=built.classes,
        params=sum(parameter.numel() for parameter in built.root.parameters()),
        flops=observed.flops,
        sites=tuple(sites),
        language=language,
        **{field: getattr(family, field) for field in fields},
    )


def _embedding_width(name: str, family: Family, sites: Sequence[SiteFacts]) -> int | None:
    """None for a tower that pools nothing, whose tokens are what others read."""
    for site in sites:
        if site.path in ("embedding", "logits"):
            return site.width
    if family.blocks and family.pool == "none":
        return None
    raise UnsupportedBlock(f"{name} (family {family.name}) gave neither an embedding nor logits in a forward")


# ---------------------------------------------------------------- canonical sites


@dataclass
class _Observed:
    """Shapes of one image's tensors by path, and the cost of its forward."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    flops: int = 0


def _meta_forward(family: Family, batch: int, hooks: dict[nn.Module, Any]) -> int:
    """Run a forward on the meta device under read-only hooks; returns its floating point operations."""
    handles = []
    dtype = next(family.visual.parameters()).dtype
    for module, (before, after) in hooks.items():
        if before is not None:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        if after is not None:
            handles.append(module.register_forward_hook(after))
    try:
        counter = FlopCounterMode(display=False)
        # With gradients on, attention takes the path whose operations are counted.
        with torch.enable_grad(), counter:
            shape = (3, *family.input_hw) if family.latent is None else (family.latent,)
            family.forward(torch.empty(batch, *shape, device="meta", dtype=dtype))
        return counter.get_total_flops()
    finally:
        for handle in handles:
            handle.remove()


def _observe(family: Family) -> _Observed:
    """Shapes of every site that this model really has; derived sites that refuse (no exact rule) are left out."""
    tensors: dict[str, Tensor] = {}
    hooks: dict[nn.Module, list[Any]] = {}
    natives = [(path, entry) for path, entry in family.sites.items() if isinstance(entry, Native)]
    for module in dict.fromkeys(entry.module for _, entry in natives):
        mine = [(path, entry) for path, entry in natives if entry.module is module]
        hooks[module] = [_input_recorder(tensors, mine), _output_recorder(tensors, mine)]
    observed = _Observed(flops=_meta_forward(family, 1, hooks))
    with torch.no_grad():
        for path, entry in family.sites.items():
            if (isinstance(entry, Derived) and _computable(path, family.sites, tensors)) or path in tensors:
                observed.shapes[path] = tuple(tensors[path].shape)
    return observed


def _input_recorder(tensors: dict[str, Tensor], sites: list[tuple[str, Native]]) -> Any:
    wanted, call = [(path, entry) for path, entry in sites if entry.io == "input"], count()

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _keep(tensors, wanted, next(call), lambda entry: argument(entry, args, kwargs))

    return record if wanted else None


def _output_recorder(tensors: dict[str, Tensor], sites: list[tuple[str, Native]]) -> Any:
    wanted, call = [(path, entry) for path, entry in sites if entry.io == "output"], count()

    def record(module: nn.Module, args: Any, output: Any) -> None:
        _keep(tensors, wanted, next(call), lambda entry: element(entry, output))

    return record if wanted else None


def _keep(
    tensors: dict[str, Tensor], wanted: list[tuple[str, Native]], call: int, take: Callable[[Native], Any]
) -> None:
    for path, entry in wanted:
        if entry.call == call:
            value = take(entry)
            tensors[path] = entry.read(value) if entry.read else value


def _computable(path: str, sites: dict[str, Entry], tensors: dict[str, Tensor]) -> bool:
    """Compute a derived site from its sources on the meta device; False where the family refuses it."""
    if path in tensors:
        return True
    entry = sites.get(path)
    if not isinstance(entry, Derived) or not all(_computable(need, sites, tensors) for need in entry.needs):
        return False
    try:
        tensors[path] = entry.compute(*(promote(tensors[need]) for need in entry.needs), None)
    except UnsupportedBlock:
        return False
    return True


def _site_facts(family: Family, path: str, entry: Entry, shape: tuple[int, ...]) -> SiteFacts:
    match entry.layout:
        case "tokens":
            return _token_facts(family, path, entry, shape[1], shape[2:])
        case "heads":
            return _token_facts(family, path, entry, shape[2], (shape[1], *shape[3:]))
        case "map":
            return _map_facts(path, shape)
        case "vector":
            return SiteFacts(path=path, layout="vector", shape=shape[1:], positions=1)


def _token_facts(family: Family, path: str, entry: Entry, positions: int, shape: tuple[int, ...]) -> SiteFacts:
    prefix = family.n_prefix if entry.prefix is None else entry.prefix
    grid = family.grid if entry.grid is None else entry.grid
    on_grid = positions == prefix + grid[0] * grid[1]
    return SiteFacts(
        path=path,
        layout=entry.layout,
        shape=shape,
        positions=positions,
        prefix=prefix if on_grid else 0,
        grid=grid if on_grid else None,
        selectors=_selectors(family, entry, prefix) if on_grid else ("all",),
    )


def _selectors(family: Family, entry: Entry, prefix: int) -> tuple[Tokens, ...]:
    """A pool of a convolutional map has its own prefix (the mean token): it is neither class token nor patches."""
    if entry.prefix is not None:
        return ("all", "map")
    found: list[Tokens] = ["all", "patch", "map"]
    if family.has_cls:
        found.append("cls")
    if prefix - int(family.has_cls) > 0:
        found.append("reg")
    return tuple(found)


def _map_facts(path: str, shape: tuple[int, ...]) -> SiteFacts:
    _, channels, rows, columns = shape
    return SiteFacts(
        path=path, layout="map", shape=(channels,), positions=rows * columns, grid=(rows, columns), selectors=("map",)
    )


# ---------------------------------------------------------------- raw modules


def _module_facts(model: str, root: nn.Module, family: Family, path: str) -> SiteFacts:
    """Layout of a raw module's output, told from its shape under two batch sizes."""
    name = path.removeprefix("module:")
    try:
        module = root.get_submodule(name)
    except AttributeError as error:
        near = [known for known, _ in root.named_modules() if known.endswith(name.rsplit(".", 1)[-1])][:3]
        raise UnknownSite(
            f"module:{name}: {model} has no such module" + (f"; there is {', '.join(near)}" if near else "")
        ) from error
    (first, second) = (_output_shape(model, family, module, name, batch) for batch in (3, 5))
    if first[:1] != (3,) or second[:1] != (5,) or first[1:] != second[1:]:
        raise UnknownSite(
            f"module:{name}: {model} returns shape {first} for 3 images; the first axis must be the images"
        )
    return _layout(model, family, f"module:{name}", first)


def _output_shape(model: str, family: Family, module: nn.Module, name: str, batch: int) -> tuple[int, ...]:
    seen: list[Any] = []
    _meta_forward(family, batch, {module: (None, lambda module, args, output: seen.append(output))})
    if len(seen) != 1:
        raise UnknownSite(
            f"module:{name}: it runs {len(seen)} times in one forward of {model}, so its output names no single tensor"
        )
    if not isinstance(seen[0], Tensor):
        raise UnknownSite(f"module:{name}: {model} returns a {type(seen[0]).__name__} there, not one tensor")
    return tuple(seen[0].shape)


def _layout(model: str, family: Family, path: str, shape: tuple[int, ...]) -> SiteFacts:
    if len(shape) == 2:
        return SiteFacts(path=path, layout="vector", shape=shape[1:], positions=1)
    if len(shape) == 3:
        return _token_facts(family, path, Native(family.visual), shape[1], shape[2:])
    if len(shape) == 4:
        first, last = _like_image(family, shape[2:]), _like_image(family, shape[1:3])
        if first and last and len(set(shape[1:])) > 1:
            first = False  # [B, n, n, C] and n : C as the image: channels-last wins only if channels-first cannot
        if first != last:
            return _map_facts(path, shape if first else (shape[0], shape[3], shape[1], shape[2]))
    raise UnknownSite(
        f"{path}: {model} returns shape {shape[1:]} per image there, neither a vector, tokens nor a map with clear channels"
    )


def _like_image(family: Family, rows_columns: tuple[int, ...]) -> bool:
    """Whether two axes are a coarser grid of the input image."""
    rows, columns = rows_columns
    height, width = family.input_hw
    return rows * width == columns * height and height % rows == 0
