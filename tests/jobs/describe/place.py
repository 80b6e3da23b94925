"""A lake with all that methods describe units by (activations, an SAE with dead latents, an encoder), and workers run by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cluster.inputs import StoreInputs
from cluster.keep import StoreKeep
from cluster.pipeline import RunReport
from cluster.planned import plan_pipeline
from cluster.stores.base import make_store
from jobs.describe.work import open_worker
from jobs.encoders import WEIGHTS as ENCODER
from jobs.protocol import Part, Setting
from jobs.sae_files import WEIGHTS
from miclip_core.align.encoder import NeuronEncoder, load_encoder
from miclip_core.sae.foreign import save_foreign
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from schemas.errors import KeyMissing
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources, Shard
from schemas.sae import SaeConfig
from tests.lakes import SHAPES, Lake

MODEL, CLIP, SITE, IMAGES, WIDTH, LATENTS = "demo:clip-p8", "demo:clip-rn", "resid_post.3@patch", 112, 96, 48
METHODS, TAU = ["miclip", "act_values", "auroc", "clip_dissect"], 5
"""Those that look at images as wholes."""
SAMPLED = f"{SITE}:sample(8,0)"
DEAD = (3, 40)
"""Latents that never fire."""
ACTS = {
    "kind": "extract", "sites": [SITE], "outputs": ["activations", "predictions"], "batch_size": 32,
    "classes": {"names": list(SHAPES), "templates": ["a {}"]},
}  # fmt: skip


def make_sae() -> Sae:
    """Directions at random, of which two are never among the most active."""
    make = torch.Generator().manual_seed(0)
    W_dec = normalize(torch.randn(LATENTS, WIDTH, generator=make), dim=1)
    b_enc = torch.zeros(LATENTS)
    b_enc[list(DEAD)] = -1e6
    return Sae(SaeConfig(arch="topk", d=WIDTH, latents=LATENTS, k=6), W_dec.clone(), b_enc, W_dec, torch.zeros(WIDTH))


class Place:
    """One lake; what is described comes on top of what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lake = folder, Lake(folder / "lake")

    def prepare(self) -> None:
        """Everything but descriptions."""
        save_foreign("miclip", make_sae(), self.folder / "sae")
        report = self.lake.run(self.spec({"acts", "sae", "align"}))
        assert report.exit_code == 0, report.failures

    def copy(self, name: str) -> Place:
        """The same lake elsewhere."""
        shutil.copytree(self.folder / "lake", self.folder / name / "lake")
        other = Place(self.folder / name)
        shutil.copytree(self.folder / "sae", other.folder / "sae")
        return other

    def spec(self, stages: set[str], acts: dict[str, Any] | None = None, **describe: Any) -> PipelineSpec:
        known: dict[str, Any] = {
            "acts": {**ACTS, **(acts or {})},
            "sae": {
                "kind": "import_sae", "saes": [f"miclip:{self.folder / 'sae'}"], "sites": [SAMPLED], "batch_size": 32,
                "evaluate_images": 8, "holdout": 0.3, "block_images": 8,
            },
            "align": {"kind": "align", "reads": ["acts"], "batch": 32, "lr": 0.01},
        }  # fmt: skip
        used = {name: known[name] for name in known if name in stages or (name == "acts" and "align" in stages)}
        if describe:
            used["names"] = {"kind": "describe", "reads": sorted(stages), "concepts": "world", **describe}
        data = {
            "kind": "pipeline", "name": "t", "images": {"ref": f"world:seed=0,n={IMAGES}"}, "clip": CLIP,
            "matrix": {"model": [MODEL]}, "stages": used,
        }  # fmt: skip
        return PipelineSpec.model_validate(data, strict=False)

    def run(self, reads: set[str] | None = None, **describe: Any) -> RunReport:
        return self.lake.run(self.spec(reads or {"acts", "sae", "align"}, **describe))

    def plans(self, reads: set[str] | None = None, **describe: Any) -> list[Plan]:
        """The describe stages of a spec."""
        spec = self.spec(reads or {"acts", "sae", "align"}, **describe)
        return [p for _, p, _ in plan_pipeline(spec, self.lake.store).plans() if p.stage.kind == "describe"]

    def rows(self, report: RunReport, table: str, **where: str) -> list[dict[str, Any]]:
        return self.lake.table(report, table, **where).to_pylist()

    def sae(self, report: RunReport) -> Sae:
        (digest,) = [state.digest for state in report.state.stages if state.kind == "import_sae"]
        return load_sae(StoreInputs(self.lake.store).published(digest, WEIGHTS))

    def encoder(self, report: RunReport) -> NeuronEncoder:
        (digest,) = [state.digest for state in report.state.stages if state.kind == "align"]
        return load_encoder(StoreInputs(self.lake.store).published(digest, ENCODER))

    def pooled(self, report: RunReport, kind: str, pool: str = "mean") -> Tensor:
        """Mean or largest activation of every unit in every image [N,U], one image after another, from the rows of `activations`."""
        tokens: dict[int, list[list[float]]] = {}
        for row in sorted(self.rows(report, "activations"), key=lambda row: (row["image_index"], row["token"])):
            tokens.setdefault(row["image_index"], []).append(row["act"])
        values = [torch.tensor(tokens[index]) for index in sorted(tokens)]
        if kind == "features":
            sae = self.sae(report)
            values = [sae.encode(some).dense() for some in values]
        return torch.stack([some.mean(0) if pool == "mean" else some.amax(0) for some in values])

    def labelled(self, report: RunReport, names: list[str]) -> np.ndarray:
        """Which image has which value, bool [N,M]: an attribute `shape`, `shape_2`, ... of the five planted categories."""
        out = np.zeros((IMAGES, len(names)), bool)
        for row in self.rows(report, "images"):
            for column, value in row["attributes"]:
                if column.split("_")[0] in ("shape", "colour", "texture", "size", "background") and value in names:
                    out[row["image_index"], names.index(value)] = True
        return out

    def embeddings(self, report: RunReport) -> Tensor:
        found = {row["image_index"]: row["embedding"] for row in self.rows(report, "embeddings", model=CLIP)}
        return torch.tensor([found[index] for index in sorted(found)])


class Hidden(StoreInputs):
    """What a store holds, without the embeddings of some images; remembers artifacts of earlier rounds by itself."""

    def __init__(self, place: Place, hidden: Collection[int] = ()) -> None:
        super().__init__(place.lake.store)
        self._hidden = set(hidden)
        self.kept: dict[tuple[str, int, str], bytes] = {}

    def table(self, stage: str, table: str, columns: Any = None, between: Any = None) -> Iterator[pa.RecordBatch]:
        for batch in super().table(stage, table, columns, between):
            if table == "embeddings":
                shown = [index not in self._hidden for index in batch["image_index"].to_pylist()]
                batch = batch.filter(pa.array(shown))
            yield batch

    def artifact(self, stage: str, shard: int, name: str) -> bytes:
        try:
            return self.kept[stage, shard, name]
        except KeyError:
            raise KeyMissing(f"{stage} {shard} {name}") from None


def by_hand(plans: Sequence[Plan], inputs: Hidden, order: Callable[[list[Shard]], list[Shard]] = list) -> list[Part]:
    """The parts of sibling stages, whose shards of each round are worked off in some order, each by a worker of its own."""
    parts = []
    for number in range(len(plans[0].rounds)):
        for shard in order(list(plans[0].shards(number))):
            worker = open_worker(Setting(tuple(plans), Resources()), inputs)
            for made in worker.process(shard, [plan.digest for plan in plans], inputs, StoreKeep(make_store("/"), 0)):
                if isinstance(made, Part):
                    parts.append(made)
                else:
                    inputs.kept[made.stage, shard.number, made.name] = made.data
    return parts


def best(scores: np.ndarray, tau: int) -> dict[int, list[int]]:
    """Row -> the columns of its tau largest scores, of equal ones the first; NaN has none."""
    found = {}
    for number, row in enumerate(np.asarray(scores, np.float32)):
        order = sorted((m for m in range(len(row)) if not np.isnan(row[m])), key=lambda m: (-row[m], m))
        found[number] = order[:tau]
    return found
