"""SAEs of a store: which there are, and taking one of them, or one of other files, out into the format of a library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.cache import fetch_to_node
from cluster.catalog import Catalog, Scope, open_catalog, stage_site
from cluster.facts import find_stage
from cluster.files import Files
from cluster.inputs import StoreInputs
from cluster.read import LakeTable
from cluster.stores.base import Store
from jobs.sae_files import WEIGHTS
from schemas.errors import BadRef, UnknownModel, WorkFailed
from schemas.plans import Published
from schemas.refs import SaeRef
from schemas.sae import SaeConfig

_SETTINGS = ("arch", "d", "latents", "k", "l1", "lr", "seed", "tokens", "source")
MEASURED = (*_SETTINGS, "fvu", "l0", "dead_fraction", "recovered_mean")


def list_saes(store: Store) -> list[dict[str, Any]]:
    """Every published SAE: its ref, kind, model and site, and the columns MEASURED of its sae_summary or None."""
    published_stages = open_catalog(store, Scope(all=True)).stages
    found = [p for p in published_stages if p.stage.output == "sae"]
    measured = _measured(store, published_stages)
    nothing = dict.fromkeys(MEASURED)
    rows = [
        {
            "sae": f"sae:{published.stage.digest}",
            "kind": published.stage.kind,
            "model": published.stage.subject,
            "site": stage_site(published),
            **measured.get(f"sae:{published.stage.digest}", nothing),
        }
        for published in found
        if any(artifact.name == WEIGHTS for artifact in published.artifacts)
    ]
    return sorted(rows, key=lambda row: (row["model"], row["site"], row["arch"] or "", row["latents"] or 0, row["sae"]))


def _measured(store: Store, found: Sequence[Published]) -> dict[str, dict[str, Any]]:
    with_rows = tuple(p for p in found if "sae_summary" in p.tables)
    if not with_rows:
        return {}
    table = LakeTable(Catalog(store, with_rows), "sae_summary", {}, ["sae", *MEASURED]).arrow()
    return {row.pop("sae"): row for row in table.to_pylist()}


def export(text: str, format: str, folder: Path, store: Store | None) -> SaeConfig:
    """Write the SAE that a ref names as a new folder in the format of a library; returns what it is.

    store: where stages are; not needed for the files of other libraries.

    Raises:
        BadRef: the ref does not parse, or names nothing. UnsupportedSae: the format cannot hold this SAE.
        UsageError: the folder is there already. WorkFailed: the disk refused.
    """
    from jobs.sae_export import export_sae  # loads torch

    ref = SaeRef.parse(text)
    found = _published(ref, store) if ref.source == "sae" else _files(ref)
    try:
        return export_sae(ref.source, found, format, folder)
    except OSError as error:
        raise WorkFailed(f"{folder}: {error.strerror or error}; nothing of it was left there") from error


def _published(ref: SaeRef, store: Store | None) -> bytes:
    if store is None:
        raise BadRef(f"{ref}: a stage is looked up in a store; give --store or set MICLIP_STORE")
    stage = find_stage(store, str(ref))
    if stage.output != "sae":
        raise BadRef(f"{ref}: a stage of kind {stage.kind}, which is no SAE; `miclip saes` lists those there are")
    return StoreInputs(store).published(stage.digest, WEIGHTS)


def _files(ref: SaeRef) -> Path:
    location = ref.location if "://" in ref.location else f"file:{ref.location}"
    try:
        return fetch_to_node(Files(), location)
    except UnknownModel as error:
        raise BadRef(f"{ref}: nothing there ({error})") from None
