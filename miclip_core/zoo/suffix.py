"""Forward passes that start late: the pass of a batch once, then only its end, again and again with other edits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from miclip_core.zoo.capture import split_block
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.model import CachedBlock, VisionModel
from schemas.refs import Site


class Suffix:
    """One batch of images at a time: the pass as it is once, then from the last residual before `site` on, with edits of `site`.

    Where there is no such residual (convolutional models, what follows the last block), edited passes run whole.
    targets: what is looked at at the end of every pass; those that the model has are in `self.targets`.
    """

    def __init__(self, model: VisionModel, site: str, targets: Sequence[str]) -> None:
        self._model = model
        self.targets = [name for name in dict.fromkeys(targets) if name in model.family.sites]
        self._entrance = find_entrance(model, site)
        self._images_BCIJ: Tensor | None = None
        self._start: CachedBlock | None = None

    def begin(self, images_BCIJ: Tensor, taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Run images as they are: the targets and the taps, by canonical text of the site.

        Raises:
            What `VisionModel.run` raises.
        """
        cached = [f"{self._entrance}@all"] if self._entrance else []
        out = self._model.run(images_BCIJ, [*self.targets, *taps, *cached])
        self._start = CachedBlock(self._entrance, out[cached[0]]) if self._entrance else None
        self._images_BCIJ = None if self._entrance else images_BCIJ
        return out

    def edited(self, edits: Sequence[Edit]) -> dict[str, Tensor]:
        """The targets of the same images with edits of the site.

        Raises:
            What `VisionModel.run` raises; UnknownSite for a site that is computed from others.
        """
        return self._model.run(self._images_BCIJ, self.targets, edits, start=self._start)


def find_entrance(model: VisionModel, site: str) -> str | None:
    """The latest residual from which a pass can start that still comes through `site`, if there is one."""
    order = [facts.path for facts in model.facts.sites]
    path = Site.parse(site).path
    _, block = split_block(path)
    if block is None or not model.family.blocks or path not in order:
        return None
    for entrance in (f"resid_mid.{block}", f"resid_pre.{block}"):
        if entrance in order and order.index(entrance) <= order.index(path):
            return entrance
    return None


def latest_name(model: VisionModel, site: Site) -> Site:
    """The last name of the tensor at `site`: the output of a block is the input of the next, and a pass can start there."""
    name, block = split_block(site.path)
    if name != "resid_post" or block is None or not model.family.blocks or block + 1 >= model.facts.n_blocks:
        return site
    return site.model_copy(update={"path": f"resid_pre.{block + 1}"})
