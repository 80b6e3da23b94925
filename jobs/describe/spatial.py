"""What the methods that look at where units are active need beside activations, decided at planning; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from jobs.protocol import Known
from jobs.sae_tokens import SiteTokens
from miclip_core.concepts.names import Concepts, world_values
from schemas.concept_specs import DescribeSpec, Method
from schemas.errors import BadSpec
from schemas.models import ModelFacts

FOLDERS = ("file:", "s3:")
BUCKETS = 64
"""Parts of the units at most that are captioned apart from each other."""
BUCKET_PATCHES = 1024
"""Patches that a part is meant to have."""


def source_of(method: Method, spec: DescribeSpec) -> str:
    """Where the masks or captions of a method are from: `truth`, `captions` or the location of a model's folder."""
    return spec.segmenter if method == "netdissect" else spec.captioner


def caption_buckets(spec: DescribeSpec, neurons: int | None) -> int:
    """Into how many parts units are cut whose patches are captioned apart from each other; a patch is captioned once in each.

    neurons: units of a site; None for an SAE, whose plan need not know its width.
    """
    if not spec.captioner.startswith(FOLDERS):
        return 1  # they are only looked up
    return BUCKETS if neurons is None else min(BUCKETS, -(-neurons * spec.patches // BUCKET_PATCHES))


def spatial_params(
    method: Method, spec: DescribeSpec, known: Known, concepts: Concepts, view: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """All that decides a result of such a method beside the units. view: of its site, as `patch_positions` says.

    A folder is named by the sha256 of its files, wherever it is; what a segmenter looks for are the concepts' phrases.
    """
    where = source_of(method, spec)
    is_folder = where.startswith(FOLDERS)
    source: JsonValue = known.files[where.removeprefix("file:")] if is_folder else where
    if method == "netdissect":
        phrases: dict[str, JsonValue] = {"phrases": list(concepts.phrases)} if is_folder else {}
        return {**view, "segmenter": source, "on_share": spec.on_share, **phrases}
    asked = {"captioner": source, "patches": spec.patches}
    # captions of whole images depend on no prompt and no pixels
    return {**view, **asked, **({"prompt": spec.prompt, "context": spec.context} if is_folder else {})}


def spatial_effort(method: Method, spec: DescribeSpec, facts: ModelFacts) -> dict[str, JsonValue]:
    """Where the folder of its model is, and how the described model sees images; nothing if there is no such model."""
    where = source_of(method, spec)
    if not where.startswith(FOLDERS):
        return {}
    return {"folder": where, "geometry": facts.geometry.model_dump(mode="json")}


def check_spatial(
    method: Method, spec: DescribeSpec, known: Known, concepts: Concepts, tokens: SiteTokens, view: Mapping[str, Any]
) -> None:
    """Whether the site has patches, and, where masks are the truth of the demo world, whether it knows these images and concepts.

    Raises:
        BadSpec: it has not, or does not.
    """
    if view["grid"] is None:
        raise BadSpec(
            f"{method} looks at where a unit is active, but {tokens.site} has no patch grid; it needs sites with @patch, "
            "@all or @map and no reduction"
        )
    if method != "netdissect" or spec.segmenter != "truth":
        return
    if not world_values(concepts.names):
        raise BadSpec(
            f"segmenter truth: none of the concepts {', '.join(concepts.names[:5])} is a value of the demo world; give "
            "concepts: world, or a segmenter: file:/folder of a CLIPSeg model"
        )
    refs = [json.loads(key)["ref"] for key, images in known.images.items() if images.stage == tokens.forward.index]
    if any(not ref.startswith("world:") for ref in refs):
        raise BadSpec(
            f"segmenter truth knows the images of world:... alone, found {', '.join(refs)}; give those, or a segmenter: "
            "file:/folder of a CLIPSeg model"
        )
    if not view["whole_view"]:
        raise BadSpec(
            f"segmenter truth has masks of whole images, but {tokens.forward.model} sees a cut of them; give the extract "
            "stage geometry: square"
        )
