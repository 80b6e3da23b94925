"""A loaded vision model: taps, edits, partial forwards, gradients, embeddings, all by canonical site names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from miclip_core.zoo import geometry
from miclip_core.zoo.attention import CHAIN
from miclip_core.zoo.capture import Capture, split_block
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.select import position_axis, select, whole_site
from miclip_core.zoo.sitemap import BlockWeights, Derived, Entry, Family, Native, Readout, module_entry, promote
from miclip_core.zoo.start import CachedBlock, entrances, replaced_parts, skipping, with_start
from miclip_core.zoo.text import TextTower
from schemas.errors import GeometryMismatch, NotInEval, UnknownSite, UnsupportedBlock
from schemas.models import ModelFacts, resolve_sites
from schemas.refs import Site

Consume = Callable[[Tensor], None]


@dataclass(eq=False)
class VisionModel:
    """One model, ready to run; `module` is the library's own, untouched object.

    Tapped tensors are in the dtype of the forward, derived sites in fp32 (fp64 models: fp64).
    """

    facts: ModelFacts
    family: Family
    module: nn.Module
    text: TextTower | None
    device: torch.device
    dtype: torch.dtype

    # -------------------------------------------------------------- images

    def geometry(self, image: Image.Image) -> Tensor:
        """An RGB image, resized and cropped for this model: uint8 [3, h, w]."""
        return geometry.to_pixels(image, self.facts.geometry)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [..., 3, h, w] -> model input, on the model's device and in its dtype."""
        return geometry.normalise(pixels.to(self.device), self.facts.geometry).to(self.dtype)

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image -> model input [3, h, w]."""
        return self.normalise(self.geometry(image))

    # -------------------------------------------------------------- one pass

    def sites(self, texts: Sequence[str | Site]) -> tuple[Site, ...]:
        """Canonical, absolute sites; see `resolve_sites`."""
        return resolve_sites(self.facts, texts)

    def run(
        self,
        images_BCIJ: Tensor | None,
        taps: Sequence[str | Site],
        edits: Sequence[Edit] = (),
        *,
        grad: bool = False,
        raw: Sequence[str | Site] = (),
        image_ids: Sequence[str] | None = None,
        consume: Mapping[str, Consume] | None = None,
        start: CachedBlock | None = None,
        stop: Literal["last_tap", "end"] = "last_tap",
    ) -> dict[str, Tensor]:
        """One forward pass: every tap's tensor after its selector and reduction, by the canonical text of the site.

        images: normalised [B, 3, h, w]; may be None with `start`. edits: applied before taps are read, in order.
            An edit of `resid_mid.l` is carried by what is added there, so `attn_out.l` shows it and `attn_out.l!raw` not.
        raw: sites wanted as they were before edits, returned as `site!raw`. image_ids: needed by sampled sites.
        consume: by canonical site, called inside the pass with the selected tensor, which is then not kept.
        grad: record the graph; taps then hang on whatever requires gradients (images, the start, an edit's value).
        start: skip everything before a cached tensor. stop: leave the forward after the last tap, or run it all.

        Raises:
            UnknownSite, GeometryMismatch, NotInEval, HookNeverFired, UnsupportedBlock.
        """
        sites, raw_sites = self.sites(taps), self.sites(raw)
        edits_by_path = self._edits_by_path(edits)
        self._check(images_BCIJ, start, [*sites, *raw_sites], edits_by_path)
        collect = _Collect(self, sites, raw_sites, image_ids, consume or {})
        if start is not None:
            edits_by_path = with_start(self.family, edits_by_path, start)
        untouched = {site.path for site in raw_sites if site.path not in edits_by_path}
        native, wanted_later = self._sources({site.path for site in sites} | untouched, edits_by_path)
        collect.keep = wanted_later
        wanted = {site.path for site in (*sites, *raw_sites)}
        capture = Capture(
            facts=self.facts,
            family=self.family,
            entries=self._entries(native | set(edits_by_path)),
            native=native,
            edits=edits_by_path,
            raw={site.path for site in raw_sites},
            deliver=collect.deliver,
            stop=stop == "last_tap",
            heads_wanted={block or 0 for name, block in map(split_block, wanted) if name == "head_result"},
        )
        with torch.set_grad_enabled(grad), skipping(self.family, start):
            images = self._input(images_BCIJ, start)
            if native or edits_by_path or raw_sites or stop == "end":
                capture.run(lambda: self.family.forward(images))
            collect.derive()
        return collect.out

    def embed_images(self, images_BCIJ: Tensor) -> Tensor:
        """Image embeddings [B, E], not normalised to unit length.

        For a model with a classifier head, what its last linear layer reads; `logits` gives the scores.
        """
        return self.run(images_BCIJ, ["embedding"])["embedding"]

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings [M, E], not normalised to unit length.

        Raises:
            UnsupportedBlock: this model has no text tower.
            NotInEval: it is in training mode.
        """
        self._check_eval()
        if self.text is None:
            raise UnsupportedBlock(
                f"{self.facts.model} has no text tower; name concepts with a CLIP model (spec field `clip`)"
            )
        return self.text.embed(texts)

    def logits(self, images_BCIJ: Tensor) -> Tensor:
        """Scores [B, C] of the model's own classifier head, in the order of `facts.classes`.

        Raises:
            UnsupportedBlock: this model has no classifier head.
        """
        if "logits" not in self.family.sites:
            raise UnsupportedBlock(f"{self.facts.model} has no classifier head; use a zero-shot classifier")
        return self.run(images_BCIJ, ["logits"])["logits"]

    # -------------------------------------------------------------- weights

    def weights(self, block: int) -> BlockWeights:
        """The weights of one transformer block, split by head; see BlockWeights."""
        if self.family.weights is None:
            raise UnsupportedBlock(f"{self.facts.model} (family {self.facts.family}) has no attention blocks to split")
        if not 0 <= block < self.facts.n_blocks:
            raise UnknownSite(f"block {block}: {self.facts.model} has blocks 0..{self.facts.n_blocks - 1}")
        return self.family.weights(block)

    def readout(self) -> Readout:
        """Final norm, pooling row and output projection; see Readout."""
        if self.family.readout is None:
            raise UnsupportedBlock(f"{self.facts.model} (family {self.facts.family}) has no linear readout")
        return self.family.readout()

    # -------------------------------------------------------------- inside

    def entry(self, path: str) -> Entry:
        """How a canonical path is found: a hook or a computation."""
        if path in self.family.sites:
            return self.family.sites[path]
        return module_entry(self.submodule(path), self.facts.site(path))

    def submodule(self, path: str) -> nn.Module:
        """The library's own module that a raw site `module:...` names."""
        return self.module.get_submodule(path.removeprefix("module:"))

    def _entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        return {**self.family.sites, **{path: self.entry(path) for path in paths if path not in self.family.sites}}

    def _edits_by_path(self, edits: Sequence[Edit]) -> dict[str, list[Edit]]:
        found: dict[str, list[Edit]] = defaultdict(list)
        for edit in edits:
            self.facts.site(edit.path)
            if edit.site.reduce is not None:
                raise UnknownSite(
                    f"{edit.site}: an edit changes tokens, not what a reduction makes of them; leave it away"
                )
            if edit.site.tokens is not None:
                resolve_sites(self.facts, [edit.site])
            found[edit.path].append(edit)
        return found

    def _sources(self, paths: set[str], edits: Mapping[str, Sequence[Edit]]) -> tuple[set[str], set[str]]:
        """The native sites to read, and those whose whole tensor is kept for sites derived from it."""
        native, kept = set(), set()
        recomputed = {split_block(path)[1] for path in edits if split_block(path)[0] in CHAIN}
        todo = list(paths)
        while todo:
            path = todo.pop()
            entry = self.entry(path)
            if isinstance(entry, Native):
                native.add(path)
            elif not (split_block(path)[0] in CHAIN and split_block(path)[1] in recomputed):
                kept |= set(entry.needs)
                todo += entry.needs
        return native, kept

    def _input(self, images_BCIJ: Tensor | None, start: CachedBlock | None) -> Tensor:
        if images_BCIJ is not None:
            return images_BCIJ
        assert start is not None
        return torch.zeros(len(start.value), 3, *self.facts.input_hw, device=self.device, dtype=self.dtype)

    def _check_eval(self) -> None:
        if any(module.training for module in self.module.modules()):
            raise NotInEval(f"{self.facts.model} is in training mode; call model.module.eval() first")

    def _check(
        self, images: Tensor | None, start: CachedBlock | None, sites: Sequence[Site], edits: Mapping[str, Any]
    ) -> None:
        self._check_eval()
        if images is None and start is None:
            raise GeometryMismatch(f"{self.facts.model}: no images and no cached block to start from")
        if images is not None and tuple(images.shape[1:]) != (3, *self.facts.input_hw):
            h, w = self.facts.input_hw
            raise GeometryMismatch(
                f"{self.facts.model}: images have shape {tuple(images.shape)}, expected [B, 3, {h}, {w}]; "
                "use model.preprocess, or geometry and normalise"
            )
        if start is not None:
            self._check_start(start, [site.path for site in sites] + list(edits))
            self._check_start_shape(start, images)

    def _check_start(self, start: CachedBlock, paths: Sequence[str]) -> None:
        known = entrances(self.family)
        if start.site not in known:
            places = ", ".join(dict.fromkeys(re.sub(r"\.\d+", ".*", path) for path in known))
            raise UnknownSite(
                f"start {start.site}: a forward of {self.facts.model} "
                + (f"can start at {places}" if places else "cannot start late; give images")
            )
        order = {site.path: index for index, site in enumerate(self.facts.sites)}
        skipped = {inner for part in replaced_parts(self.family, start) for inner in part.modules()}
        sources: set[str] = set()
        for path in paths:
            sources |= {path} | self._sources({path}, {})[0]
        early = sorted(
            path
            for path in sources & order.keys()
            if order[path] < order[start.site] or (path.startswith("module:") and self.submodule(path) in skipped)
        )
        if early:
            raise UnknownSite(f"{early[0]} comes before the start {start.site} of this partial forward; start earlier")

    def _check_start_shape(self, start: CachedBlock, images: Tensor | None) -> None:
        known = self.facts.site(start.site)
        batch = len(images) if images is not None else start.value.shape[0] if start.value.ndim else 0
        places = (*known.shape, *(known.grid or ())) if known.layout == "map" else (known.positions, *known.shape)
        expected = (batch, *places)
        if tuple(start.value.shape) != expected:
            raise GeometryMismatch(
                f"start {start.site}: the cached tensor has shape {tuple(start.value.shape)}, expected {expected}; "
                f"cache {whole_site(known)} of the same images"
            )


class _Collect:
    """Gathers what a pass delivers: selects, hands to consumers, keeps whole tensors only for derived sites."""

    def __init__(
        self,
        model: VisionModel,
        sites: Sequence[Site],
        raw: Sequence[Site],
        image_ids: Sequence[str] | None,
        consume: Mapping[str, Consume],
    ) -> None:
        self.model, self.image_ids, self.consume = model, image_ids, consume
        self.taps: dict[str, list[Site]] = defaultdict(list)
        self.raw: dict[str, list[Site]] = defaultdict(list)
        for site in raw:
            self.raw[site.path].append(site)
        for site in sites:
            self.taps[site.path].append(site)
        self.keep: set[str] = set()
        self.whole: dict[str, Tensor] = {}
        self.computed: dict[str, Tensor] = {}
        self.block: int | None = None
        self.out: dict[str, Tensor] = {}
        self.done: set[str] = set()

    def deliver(self, path: str, value: Tensor, before_edits: bool) -> None:
        """Take one whole tensor out of the pass."""
        if before_edits:
            for site in self.raw[path]:
                self.out[f"{site}!raw"] = self._select(site, value)
            return
        if path in self.keep or isinstance(self.model.entry(path), Derived):
            self.whole[path] = value
        for site in self.taps[path]:
            self._give(site, self._select(site, value))
        self._give_raw(path, value)

    def _give_raw(self, path: str, value: Tensor) -> None:
        for site in self.raw[path]:  # nothing edited this site: before is after
            self.out.setdefault(f"{site}!raw", self._select(site, value))

    def derive(self) -> None:
        """Compute the derived sites, each source once, and only the rows that are wanted where that is possible."""
        for path in self.model.family.sites:
            entry = self.model.family.sites[path]
            if not isinstance(entry, Derived) or not (self.taps[path] or self.raw[path]):
                continue
            if (block := split_block(path)[1]) != self.block:
                self.computed.clear()  # what another block needed; long models would fill the memory otherwise
                self.block = block
            if self.raw[path]:
                self._give_raw(path, self.get(path))
            for site in [site for site in self.taps[path] if str(site) not in self.done]:
                rows = self._rows(entry, site)
                if rows is None or path in self.whole:
                    self._give(site, self._select(site, self.get(path)))
                else:
                    value = entry.compute(*(self.get(need) for need in entry.needs), rows)
                    self._give(site, value.squeeze(position_axis(self.model.facts.site(path)) or 0))

    def get(self, path: str) -> Tensor:
        """The whole tensor of a source, in fp32 or better; computed on first use, kept while its block is worked on."""
        if path in self.whole:
            return promote(self.whole[path])
        if path not in self.computed:
            entry = self.model.entry(path)
            assert isinstance(entry, Derived), f"{path} was not captured"
            self.computed[path] = entry.compute(*(self.get(need) for need in entry.needs), None)
        return promote(self.computed[path])

    def _rows(self, entry: Derived, site: Site) -> Tensor | None:
        if entry.by_rows and site.tokens == "cls":
            return torch.zeros(1, dtype=torch.long, device=self.model.device)
        return None

    def _select(self, site: Site, value: Tensor) -> Tensor:
        return select(self.model.facts.site(site.path), site, value, self.image_ids)

    def _give(self, site: Site, value: Tensor) -> None:
        name = str(site)
        self.done.add(name)
        if name in self.consume:
            self.consume[name](value)
        else:
            self.out[name] = value
