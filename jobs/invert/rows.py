"""The rows of table `rosetta_inversions`: one latent that was found, with its curves, scores and picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from jobs.invert.plan import edit_of
from jobs.protocol import ImageBytes, Part
from jobs.rows import make_batch
from miclip_core.generate.generator import as_uint8
from miclip_core.rosetta.image_scores import WINDOW, psnr, ssim
from miclip_core.rosetta.inversion import Inversion
from schemas.plans import Plan
from schemas.tables import TABLES

TABLE = "rosetta_inversions"
PICTURE_SIDE = 256

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Images:
    """Images to invert or edit, as the generator would draw them or did: uint8 [B, 3, h, w]."""

    of: Sequence[ImageBytes]
    pixels: Tensor

    def take(self, places: Sequence[int]) -> Images:
        """Some of them, in the order asked for, with repeats."""
        return Images([self.of[i] for i in places], self.pixels[list(places)])


def make_rows(plan: Plan, images: Images, starts: Sequence[int], found: Inversion, pairs: int) -> list[Row]:
    """One row per sample: its image, the number of its start, and what was found."""
    drawn = as_uint8(found.images)
    near, alike = psnr(drawn, images.pixels).tolist(), _ssim(drawn, images.pixels)
    edit = edit_of(plan)
    pictures = drawn.permute(0, 2, 3, 1).cpu().numpy()
    curves = [values.cpu().numpy() for values in (found.losses, found.similarities, found.pixels)]
    latents = found.latents.float().cpu().numpy()
    return [
        {
            "stage": plan.digest,
            "model": plan.stage.subject,
            "image_id": image.image_id,
            "image_index": image.image_index,
            "uri": image.uri,
            "start": start,
            "edit": None if edit is None else str(edit),
            "space": plan.stage.params["space"],
            "pairs": pairs,
            "steps": int(found.steps[i]),
            **{name: curve[i] for name, curve in zip(("loss", "act_sim", "pixel_loss"), curves, strict=True)},
            "latent": latents[i],
            "psnr": None if math.isinf(near[i]) else near[i],
            "ssim": alike[i],
            "lpips": None,
            "act_sim_before": float(curves[1][i, 0]),
            "act_sim_after": float(curves[1][i, -1]),
            "picture": _png(pictures[i]),
        }
        for i, (image, start) in enumerate(zip(images.of, starts, strict=True))
    ]


def make_part(plan: Plan, rows: Sequence[Row]) -> Part:
    """All rows of some images; of each image the start with the smallest loss is marked."""
    best: dict[int, Row] = {}
    for row in rows:
        known = best.setdefault(row["image_index"], row)
        if row["loss"][-1] < known["loss"][-1]:
            best[row["image_index"]] = row
    for row in rows:
        row["is_best"] = row is best[row["image_index"]]
    columns = {name: [row[name] for row in rows] for name in TABLES[TABLE].schema.names}
    return Part(plan.digest, TABLE, make_batch(TABLE, columns))


def _ssim(a: Tensor, b: Tensor) -> list[float | None]:
    if min(a.shape[-2:]) < WINDOW:
        return [None] * len(a)
    return ssim(a, b).tolist()


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
