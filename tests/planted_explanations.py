"""How often sentences about features of the demo world name what was planted; `python -m tests.planted_explanations DIR` explains
and scores them, every part a run of the lake DIR, and `python -m tests.planted_explanations_tables DIR` prints the tables of docs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.pipeline import RunReport
from miclip_core.world.captions import sentences
from miclip_core.world.reading import read
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import Lake

MODEL, VLM = "demo:clip-p8", "demo:llava-p8"
BLOCKS = {"middle": 2, "tapped": 3}
"""The language model reads the output of block 3: edits at block 2 pass one more block."""
ARCHS = ("topk", "batchtopk")
SEEDS = (0, 1, 2)
SELECTIVE = 0.95
"""Patch AUROC above which a feature stands for a value."""
KINDS = ("shape", "colour", "texture", "background")
LEARNT, SHOWN, HELD = "world:seed=3,n=2000", "world:seed=0,n=1500", "world:seed=1,n=1500"
"""What SAEs are trained on, texts are made from, and features and texts are judged on."""
SAE = {"latents": 128, "k": 10, "lr": 2e-3, "steps": 800, "batch_tokens": 1024, "block_images": 16}
"""The recipe of docs/truth.md."""
ALPHAS = (0, 1, 1.25, 1.5, 2, 3, 4, 6, 8)
CONTROLS = (1, 2, 4, 8)
BLOCK = "block:3"
GRID = (0.25, 0.5, 1, 1.5, 2, 3, 4)
VALIDATION = 40
"""Features on which alphas are chosen; scores are of the others."""
TEXTS = {
    "kind": "explain", "reads": "shown", "vlm": VLM, "alpha_unit": "p90", "blank": "grey", "batch_features": 32,
    "shard_features": 128, "max_new_tokens": 48,
}  # fmt: skip
NAMED: dict[str, dict[str, Any]] = {
    "steering": {"methods": ["steering"], "alpha": [*ALPHAS]},
    "steering-controls": {"methods": ["steering"], "alpha": [*CONTROLS], "direction": ["random", "permuted"]},
    "block": {"methods": ["steering"], "alpha": [*ALPHAS[1:]], "steered": BLOCK},
    "block-controls": {"methods": ["steering"], "alpha": [*CONTROLS], "steered": BLOCK, "direction": ["random", "permuted"]},
    "topk": {"methods": ["topk"], "masking": ["masks", "heatmaps"]},
    "informed": {"methods": ["informed"], "masking": ["masks", "heatmaps"], "alpha": [0.25, 0.5, 1, 2]},
    "informed-controls": {
        "methods": ["informed"], "masking": ["masks", "heatmaps"], "alpha": [1], "direction": ["random", "permuted"],
    },
}  # fmt: skip
"""Explain stages about features that stand for a value: every alpha and control."""
BLANKS = ("white", "black")
"""Other images to steer, at alpha 2."""
SCORED: dict[str, dict[str, Any]] = {
    "texts": {
        "methods": ["steering", "topk", "informed"], "masking": ["masks", "heatmaps"], "alpha": "auto",
        "alpha_grid": [*GRID], "validation": VALIDATION,
    },
}  # fmt: skip
"""Explain stages about all features, as a user has them."""


class Part(NamedTuple):
    """One SAE: where it is, and how it was trained."""

    place: str
    arch: str
    seed: int

    @property
    def site(self) -> str:
        """Of its features."""
        return f"resid_post.{BLOCKS[self.place]}@patch"

    def run_name(self, what: str) -> str:
        """Of the pipeline that finds something out about it."""
        return f"{what}-{self.place}-{self.arch}-{self.seed}"


class Measure:
    """A lake in which SAEs are trained and explained; what is there is kept."""

    def __init__(self, folder: Path, images: Mapping[str, str] = {}, sae: Mapping[str, Any] = {}) -> None:
        """images: other image sets for learnt, shown, held. sae: other settings of the SAEs."""
        self.lake = Lake(folder)
        self._images = {"learnt": LEARNT, "shown": SHOWN, "held": HELD, **images}
        self._sae = {**SAE, **sae}

    def describe(self, part: Part) -> RunReport:
        """Train an SAE, and what its features are active on."""
        return self._run(part.run_name("features"), self._features(part))

    def explain(self, part: Part, what: str, stages: Mapping[str, Mapping[str, Any]], **scores: Any) -> RunReport:
        """Texts by each of several explain stages, and their scores on other images."""
        explained = {name: {**TEXTS, **stage} for name, stage in stages.items()}
        judged = {
            "kind": "score_explanations",
            "reads": [*explained, "held"],
            "labels": "world",
            "on_shared": "leave_out",
            **scores,
        }
        return self._run(part.run_name(what), {**self._features(part), **explained, "scores": judged})

    def selective(self, part: Part) -> list[int]:
        """Features that stand for a value on the images to judge on."""
        rows = self.lake.table(self.describe(part), "sae_selectivity", level="patch").to_pylist()
        kinds = {row["feature"]: row["concept"].split("=")[0] for row in rows if row["rank_in_feature"] == 0}
        high = {row["feature"] for row in rows if row["rank_in_feature"] == 0 and row["auroc"] > SELECTIVE}
        return sorted(feature for feature in high if kinds[feature] in KINDS)

    def _features(self, part: Part) -> dict[str, Any]:
        vectors = {"kind": "extract", "model": MODEL, "images": {"ref": self._images["learnt"]}, "sites": [part.site], "outputs": ["activations"]}  # fmt: skip
        sae = {"kind": "train_sae", "reads": "vectors", **self._sae, "arch": part.arch, "seed": part.seed}
        of = {"kind": "sae_features", "reads": "sae", "rank_by": "mean"}
        shown = {**of, "images": {"ref": self._images["shown"]}, "tables": ["features", "top_images"]}
        held = {**of, "images": {"ref": self._images["held"]}, "tables": ["features", "top_images", "selectivity"]}
        return {"vectors": vectors, "sae": sae, "shown": shown, "held": held}

    def _run(self, name: str, stages: Mapping[str, Any]) -> RunReport:
        data = {
            "kind": "pipeline",
            "name": name,
            "clip": MODEL,
            "images": {"ref": self._images["shown"]},
            "stages": dict(stages),
        }
        report = self.lake.run(PipelineSpec.model_validate(data, strict=False))
        assert report.exit_code == 0, report.failures
        return report


def parts(archs: Sequence[str] = ARCHS, seeds: Sequence[int] = SEEDS) -> Iterator[Part]:
    """All SAEs."""
    for seed in seeds:
        for arch in archs:
            for place in BLOCKS:
                yield Part(place, arch, seed)


def is_fluent(text: str) -> bool:
    """Whether a text is a caption as the world has them: what it says, said by the world, is the text."""
    return sentences(read(text).claims()) == [text[:1].lower() + text[1:]]


def named_rows(measure: Measure, report: RunReport) -> list[dict[str, Any]]:
    """Rows of explanation_naming of one run, with the text."""
    key = ("sae", "feature", "method", "masking", "direction", "positions", "alpha_asked", "sequence")
    texts = measure.lake.table(report, "explanations").select([*key, "text", "alpha_rel", "status"])
    named = measure.lake.table(report, "explanation_naming")
    return pa.Table.to_pylist(named.join(texts, [*key], join_type="inner"))


def main() -> None:
    """Explain everything."""
    measure = Measure(Path(sys.argv[1]))
    only = sys.argv[2:] or ["named", "blank", "scored"]
    for part in parts():
        features = {"features": measure.selective(part)}
        if "named" in only:
            stages = {name: {**stage, **features} for name, stage in NAMED.items()}
            measure.explain(part, "named", stages, metrics=["naming"])
        if "blank" in only:
            for blank in BLANKS:
                steered = {"methods": ["steering"], "alpha": [2], "direction": ["sae", "random"], "blank": blank}
                measure.explain(part, blank, {blank: {**steered, **features}}, metrics=["naming"])
        if "scored" in only and part.arch == ARCHS[0]:
            measure.explain(part, "scored", SCORED)
        print(part, len(features["features"]), flush=True)


if __name__ == "__main__":
    main()
