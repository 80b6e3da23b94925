"""Forward passes that start late: the pass of a batch once, then only its end, again and again with other edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from miclip_core.zoo.capture import split_block
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import whole_site
from miclip_core.zoo.sitemap import Family
from miclip_core.zoo.start import CachedBlock, entrances
from schemas.refs import Site


class Suffix:
    """One batch of images at a time: the pass as it is once, then from the last entrance before `site` on, with edits of it.

    An entrance is a residual between or within transformer blocks, or the output of a convolutional block or stem. Where
    there is none before the site (what comes before the first, models of no known family), edited passes run whole.
    targets: what is looked at at the end of every pass; those that the model has are in `self.targets`.
    """

    def __init__(self, model: VisionModel, site: str, targets: Sequence[str]) -> None:
        self._model = model
        self._path = latest_name(model, Site.parse(site)).path
        self.targets = [name for name in dict.fromkeys(targets) if name in model.family.sites]
        self._entrance = find_entrance(model, self._path)
        self._images_BCIJ: Tensor | None = None
        self._start: CachedBlock | None = None

    def begin(self, images_BCIJ: Tensor, taps: Sequence[str | Site] = ()) -> dict[str, Tensor]:
        """Run images as they are: the targets and the taps, by canonical text of the site.

        Raises:
            What `VisionModel.run` raises.
        """
        if self._entrance is None:
            self._images_BCIJ = images_BCIJ
            return self._model.run(images_BCIJ, [*self.targets, *taps])
        self._start = None  # that of the batch before is not needed any more
        cached = whole_site(self._model.facts.site(self._entrance))
        out = self._model.run(images_BCIJ, [*self.targets, *taps, cached])
        self._start = CachedBlock(self._entrance, out[str(cached)])
        return out

    def edited(self, edits: Sequence[Edit]) -> dict[str, Tensor]:
        """The targets of the same images with edits of the site, bit for bit what a whole pass with them gives.

        Raises:
            What `VisionModel.run` raises; UnknownSite for a site that is computed from others.
        """
        renamed = [replace(edit, site=latest_name(self._model, edit.site)) for edit in edits]
        return self._model.run(self._images_BCIJ, self.targets, renamed, start=self._start)

    def replaced(self, value: Tensor) -> dict[str, Tensor]:
        """The targets of the same images with `value` for the whole tensor of the site; a pass that starts there needs no edit.

        Raises:
            See `edited`.
        """
        if self._entrance == self._path:
            return self._model.run(None, self.targets, start=CachedBlock(self._path, value))
        return self.edited([Edit(Site(path=self._path), "fn", lambda _: value)])


def find_entrance(model: VisionModel, site: str) -> str | None:
    """The latest site from which a pass can start that still comes through `site`, if there is one."""
    path = Site.parse(site).path
    order = [facts.path for facts in model.facts.sites]
    if path not in order:
        return None
    if path.startswith("module:"):
        return _entrance_of_module(model, model.submodule(path))
    # An edit of a sum is carried by what is added there, so the pass has to start before that.
    reach = order.index(path) - (path in model.family.sums)
    return next((found for found in reversed(entrances(model.family)) if order.index(found) <= reach), None)


def _entrance_of_module(model: VisionModel, module: nn.Module) -> str | None:
    """The last entrance before the part of the forward that the module lies in, or before the last part that lies in it."""
    inside, found = set(module.modules()), None
    for part, entrance in _parts(model.family):
        if part in inside or module in part.modules():
            found = entrance
    return found


def _parts(family: Family) -> list[tuple[nn.Module, str | None]]:
    """The modules that a forward runs one after another, each with the last entrance before it."""
    if not family.steps:
        return [(block.output.module, f"resid_pre.{number}") for number, block in enumerate(family.blocks)]
    paths = [path for _, path in family.steps]
    before = [next((path for path in reversed(paths[:i]) if path), None) for i in range(len(paths))]
    return [(module, entrance) for (module, _), entrance in zip(family.steps, before)]


def latest_name(model: VisionModel, site: Site) -> Site:
    """The last name of the tensor at `site`: the output of a block is the input of the next, and a pass can start there."""
    name, block = split_block(site.path)
    if name != "resid_post" or block is None or not model.family.blocks or block + 1 >= model.facts.n_blocks:
        return site
    return site.model_copy(update={"path": f"resid_pre.{block + 1}"})
