"""What units do on images: activations read once for all stages of a site, and encoded once per SAE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.describe.sizes import READ_IMAGES
from jobs.models import open_model
from jobs.protocol import Inputs, Setting
from jobs.sae_tokens import SiteTokens, planned_tokens
from jobs.tokens.blocks import row_blocks
from jobs.tokens.sources import LiveSource, Source, TableSource, TokenRows
from miclip_core.dissect.pool import Pooling, pool_codes, pool_rows
from miclip_core.sae.codes import Codes
from miclip_core.sae.sae import Sae
from schemas.plans import Shard


@dataclass(frozen=True, eq=False)
class UnitRows:
    """What U units do on B images at R positions each, on the worker's device.

    images: (image_index, image_id) of each, in the order of the index. values: [B R, U], the positions of an image one
    after another; in the stored dtype for neurons, codes for the latents of an SAE. Of the positions n_patches from
    first_patch on are the patch grid, row-major; 0 where there is none.
    """

    images: tuple[tuple[int, str], ...]
    per_image: int
    values: Tensor | Codes
    first_patch: int = 0
    n_patches: int = 0
    _pooled: dict[str, Tensor] = field(default_factory=dict)

    @property
    def image_index(self) -> np.ndarray:
        """Rows of the index, int64 [B]."""
        return np.array([index for index, _ in self.images], np.int64)

    def pooled(self, pool: Pooling) -> Tensor:
        """One activation per image and unit, float32 [B,U]; of codes the zeros count."""
        if pool not in self._pooled:
            values, each = self.values, self.per_image
            if isinstance(values, Codes):
                self._pooled[pool] = pool_codes(values, each, pool)
            else:
                self._pooled[pool] = pool_rows(values, each, pool)
        return self._pooled[pool]

    def patches(self, places: Sequence[int] | None = None) -> Tensor | Codes:
        """The patches of all images, or of those at these places among `images`: [images n_patches, U]."""
        chosen = torch.arange(len(self.images)) if places is None else torch.tensor(places, dtype=torch.int64)
        if places is None and self.n_patches == self.per_image:
            return self.values
        rows = (chosen[:, None] * self.per_image + self.first_patch + torch.arange(self.n_patches)).flatten()
        if isinstance(self.values, Codes):
            return self.values.take(rows.to(self.values.offsets.device))
        return self.values[rows.to(self.values.device)]


class UnitReader:
    """The images of a range for every stage of one site: a pure function of the stages and the range."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        """Nothing is opened before images are asked for."""
        self._setting, self._inputs = setting, inputs
        self._tokens: SiteTokens = planned_tokens(setting.plans[0])
        self._per_image = int(str(setting.plans[0].effort["per_image"]))
        self._width = int(str(setting.plans[0].effort["width"]))
        grid: Any = setting.plans[0].effort["grid"]
        self._n_patches = grid[0] * grid[1] if grid else 0
        self._first_patch = int(str(setting.plans[0].effort["first_patch"]))
        self._source: Source | None = None
        self.notes: list[str] = []

    def read(self, shard: Shard, saes: Mapping[str | None, Sae | None]) -> Iterator[dict[str | None, UnitRows]]:
        """READ_IMAGES rows of the index after another: digest of an SAE, or None for neurons -> what its units do."""
        for ranges in row_blocks(shard, READ_IMAGES, self._per_image * self._width):
            for found in self._open().read(ranges, [self._tokens.site]):
                rows = found[self._tokens.site]
                if len(rows.values):
                    yield {digest: self._units(rows, sae) for digest, sae in saes.items()}

    def _units(self, rows: TokenRows, sae: Sae | None) -> UnitRows:
        values: Tensor | Codes = rows.values.to(self._setting.device)
        if sae is not None:
            values = sae.encode(rows.values.to(sae.W_enc))
        return UnitRows(rows.images, self._per_image, values, self._first_patch, self._n_patches)

    def _open(self) -> Source:
        if self._source is None:
            if self._tokens.stored:
                self._source = TableSource(self._inputs, [self._tokens])
            else:
                model = open_model(self._tokens.forward, self._inputs, self._setting.device, [self._tokens.site])
                source = LiveSource(model, self._inputs, [self._tokens], self._setting.resources.decode_threads)
                self.notes = source.notes
                self._source = source
        return self._source
