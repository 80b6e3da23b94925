"""What a method is given: one round of one stage, and all that it may read for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jobs.activations import Forward
from jobs.between import pack, unpack_all
from jobs.columns import read_embeddings, read_texts
from jobs.concept_labels import Labels, read_categories
from jobs.describe.rows import make_parts
from jobs.describe.units import UnitRows
from jobs.protocol import Artifact, Inputs, Part, Setting
from jobs.sae_tokens import planned_tokens
from miclip_core.sae.sae import Sae
from schemas.base import canonical_json
from schemas.errors import BadAlignment
from schemas.plans import Plan, Shard, load_json


class Collector(Protocol):
    """Takes the images of one shard of a round, in order, and says what later rounds need of them."""

    def add(self, rows: UnitRows) -> None:
        """What the units do on the next images."""
        ...

    def results(self) -> Iterator[Artifact]:
        """What is kept of the whole shard."""
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """One shard of one round of one stage.

    sae: that whose latents the units are, on the worker's device; None for neurons. notes: what people should know; they
    are shown with the shard.
    """

    plan: Plan
    shard: Shard
    inputs: Inputs
    setting: Setting
    sae: Sae | None
    notes: list[str] = field(default_factory=list)
    held: dict[Hashable, Any] = field(default_factory=dict)
    """What the worker keeps from shard to shard, and for all its stages."""

    # ---------------------------------------------------------------- what is asked

    @property
    def round_name(self) -> str:
        """Which of the plan's rounds it is."""
        return self.plan.rounds[self.shard.round].name

    @property
    def params(self) -> Mapping[str, Any]:
        """What decides the result."""
        return self.plan.stage.params

    @property
    def device(self) -> str:
        """Where tensors go."""
        return self.setting.device

    @property
    def tau(self) -> int:
        """Length of every list."""
        return int(self.params["tau"])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, for methods that look at where a unit is active."""
        grid: Any = self.plan.effort["grid"]
        return grid[0], grid[1]

    @property
    def concepts(self) -> tuple[str, ...]:
        """Their names; concept m is concepts[m]."""
        return tuple(str(name) for name in self.params["concepts"])

    @property
    def units(self) -> int:
        """Channels of the site, or latents of the SAE."""
        return int(str(self.plan.effort["width"])) if self.sae is None else self.sae.config.latents

    def hold(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is made once for all shards and stages of a worker that ask by an equal key, such as a model."""
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]

    @property
    def forward(self) -> Forward:
        """The pass of the model that is described, over the images that its units are seen on: what `open_model` opens."""
        return planned_tokens(self.plan).forward

    @property
    def clip(self) -> Forward:
        """The pass of the CLIP, of methods that compare in its space."""
        return load_json(Forward, canonical_json(self.plan.effort["clip"]))

    # ---------------------------------------------------------------- what it may read

    @cached_property
    def texts_ME(self) -> Tensor:
        """The concepts' embeddings by the CLIP, float32 [M,E]."""
        stage = self.plan.stage.inputs["texts"]
        return self.hold(("texts", stage), lambda: torch.from_numpy(read_texts(self.inputs, stage)).to(self.device))

    @cached_property
    def embedded(self) -> Vectors:
        """The CLIP embeddings of the images of this shard, read once for all stages."""
        key, rows = ("embedded", self.plan.stage.inputs["embeddings"]), (self.shard.start, self.shard.stop)
        if key not in self.held or self.held[key][0] != rows:
            self.held[key] = (rows, self.embeddings(*rows))
        return self.held[key][1]

    def embeddings(self, start: int, stop: int) -> Vectors:
        """The CLIP embeddings of the images in rows [start, stop) of the index."""
        indices, x_NE = read_embeddings(self.inputs, self.plan.stage.inputs["embeddings"], [(start, stop)])
        order = np.argsort(np.array(indices, np.int64))
        return Vectors(np.array(indices, np.int64)[order], torch.from_numpy(x_NE[order]).to(self.device))

    @cached_property
    def labels(self) -> Labels:
        """Which images are labelled with which concepts, as `labels_from` says; read once for all shards and stages."""
        inputs, rows = self.plan.stage.inputs, self.plan.rounds[0].rows
        asked = (inputs["labels"], rows, tuple(self.params["labels_from"]), inputs.get("predictions"))
        categories = self.hold(("labels", *asked), lambda: read_categories(self.inputs, *asked))
        return Labels(categories, self.concepts)

    # ---------------------------------------------------------------- what rounds hand to each other

    def pack(self, name: str, arrays: Mapping[str, np.ndarray | Tensor]) -> Artifact:
        """Arrays for a later round, under a name."""
        plain = {key: a.cpu().numpy() if isinstance(a, Tensor) else a for key, a in arrays.items()}
        return pack(self.plan.digest, name, plain)

    def partials(self, round_name: str, name: str) -> Iterator[dict[str, np.ndarray]]:
        """What every shard of an earlier round packed under a name, in order; shards without it are passed over."""
        numbers = [n for n, r in enumerate(self.plan.rounds) if r.name == round_name]
        yield from unpack_all(self.inputs, self.plan, numbers[0], name)

    def part(self, table: str, columns: Mapping[str, Any]) -> Iterator[Part]:
        """Rows of a table that has the columns of every table of this kind; see `make_parts`."""
        yield from make_parts(self.plan, table, columns)


@dataclass(frozen=True, eq=False)
class Vectors:
    """Embeddings of images: image_index int64 [N] ascending, vectors float32 [N,E]."""

    image_index: np.ndarray
    x_NE: Tensor

    def has(self, images: np.ndarray) -> np.ndarray:
        """Which of these images have one: bool [images]."""
        return np.isin(images, self.image_index)

    def of(self, images: np.ndarray) -> Tensor:
        """Those of these images [images,E], in their order.

        Raises:
            BadAlignment: one has none.
        """
        if not self.has(images).all():
            missing = images[~self.has(images)]
            raise BadAlignment(
                f"{len(missing)} of {len(images)} images have no CLIP embedding, the first is {missing[0]}"
            )
        return self.x_NE[torch.from_numpy(np.searchsorted(self.image_index, images)).to(self.x_NE.device)]
