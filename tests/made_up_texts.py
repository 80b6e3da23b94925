"""Publishes texts about the features of a made-up SAE with alphas, scores, tests, choices and a map, as the kinds would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from cluster.stores.base import Store
from jobs.explained import Variant, about
from miclip_core.explain.differences import compare_methods, correct_tests
from miclip_core.explain.summary import summarise, summarise_share
from schemas.plans import StageSpec
from tests.made_up_explanations import VLM
from tests.made_up_saes import MODEL, SITE, publish_rows

Row = dict[str, Any]
STEER = ("token_norm",)
WAYS = (
    Variant(VLM, "topk", "masks", "sae", "none", "0", "activation"),
    Variant(VLM, "topk", "heatmaps", "sae", "none", "0", "activation"),
    Variant(VLM, "steering", "none", "sae", "all", "auto", "token_norm"),
    Variant(VLM, "informed", "masks", "sae", "active", "auto", "token_norm"),
    Variant(VLM, "informed", "heatmaps", "sae", "active", "auto", "token_norm"),
    Variant(VLM, "steering", "none", "random", "all", "auto", "token_norm"),
)
QUALITY = dict(zip(WAYS, (0.30, 0.27, 0.24, 0.38, 0.33, 0.05)))
SHOWN = 5
SHAPES = ("circle", "square", "star", "triangle")
COLOURS = ("red", "green", "blue", "yellow")
METRICS = ("iou", "clip", "synthetic")
LOW, HIGH = "low-level visual feature", "high-level visual feature"
LABELS = {"topk": (LOW, "other"), "steering": (HIGH, "background"), "informed": (HIGH, "other")}


def name_of(feature: int) -> tuple[str, str]:
    """The shape and colour that a feature stands for."""
    return SHAPES[feature % 4], COLOURS[feature // 4 % 4]


def publish_texts_of(
    store: Store,
    sae: str,
    features_stage: str,
    features: Sequence[int],
    images: Mapping[int, Sequence[str]],
    seed: int = 0,
) -> list[StageSpec]:
    """Explanations in six ways, the last a control, their scores and a map; sae: digest of its stage.

    images: feature -> ids of its top images. Every seventh feature has no text by steering. Texts of controls have no
    labels. Returns all stages.
    """  # fmt: skip
    of = _Texts(sae, features_stage, list(features), images, np.random.default_rng(seed))
    stages = []
    for stage, tables in [*of.alphas(), *of.explanations(), of.summary(), of.map()]:
        publish_rows(store, stage, tables)
        stages.append(stage)
    return stages


class _Texts:
    def __init__(
        self, sae: str, described: str, features: list[int], images: Mapping[int, Sequence[str]], rng: np.random.Generator
    ) -> None:  # fmt: skip
        self.inputs = {"sae": sae, "features": described}
        self.features, self.images, self.rng = features, images, rng
        self.stages = {way: self.stage("explain", "explanations", **way._asdict()) for way in WAYS}
        self.scores = {(way, f): self._score(way, f) for way, f in product(WAYS, features)}

    def stage(self, kind: str, output: str, inputs: Mapping[str, str] = {}, **params: Any) -> StageSpec:
        both = {**self.inputs, **inputs}
        return StageSpec(
            kind=kind, method=1, subject=MODEL, output=output, params={"site": SITE, **params}, inputs=both
        )

    def text(self, way: Variant, feature: int) -> str | None:
        shape, colour = name_of(feature)
        if way.method == "steering" and feature % 7 == 6:
            return None
        if way.direction == "random":
            return "A grey background"
        return {"topk": f"A {colour} object", "steering": f"Is a {shape}"}.get(way.method, f"A {colour} {shape}")

    def _score(self, way: Variant, feature: int) -> Row:
        """All scores of a text; the measures of one that is none are null."""
        iou, clip, made = self.rng.beta(4, 4, 3)
        text = self.text(way, feature)
        known = {
            "iou": QUALITY[way] * iou * 2, "clip": 0.15 + 0.1 * QUALITY[way] + 0.05 * clip, "synthetic": QUALITY[way] * made,
            "auroc": min(1.0, 0.5 + QUALITY[way] * made * 2), "named": way.direction == "sae" and feature % 3 == 0,
        }  # fmt: skip
        if text is None:
            known = dict.fromkeys(known)
        known_labels = LABELS[way.method] if text and way.direction == "sae" else (None, None)
        labels = dict(zip(("abstraction", "context"), known_labels, strict=True))
        same = {**way._asdict(), "feature": feature, "sequence": 0, "alpha": 1.0}
        return {**same, "status": "ok" if text else "refused", "text": text, **known, **labels}

    def explanations(self) -> list[tuple[StageSpec, dict[str, list[Row]]]]:
        return [(stage, {"explanations": [self._said(way, f) for f in self.features]}) for way, stage in self.stages.items()]  # fmt: skip

    def _said(self, way: Variant, feature: int) -> Row:
        shown = list(self.images.get(feature, ()))[:SHOWN] if way.sees_images else []
        text, steers = self.text(way, feature), way.method != "topk"
        return {
            **about(self.stages[way]), **way._asdict(), "feature": feature, "sequence": 0, "alpha": 1.0 if steers else 0.0,
            "strength": 2.0 if steers else 0.0, "alpha_rel": 0.5 if steers else 0.0, "realised": 1.0 if steers else None,
            "k_eff": len(shown), "full_masks": 0, "image_ids": shown, "seed": None, "text": text,
            "raw_text": f"The highlighted element in the image is {text}", "n_tokens": 6, "mean_logprob": -0.2,
            "status": "ok" if text else "refused", "prompt_sha256": "0" * 64, "is_validation": False,
        }  # fmt: skip

    def alphas(self) -> list[tuple[StageSpec, dict[str, list[Row]]]]:
        """IoU rises up to alpha 1 and falls behind it; texts become one text."""
        found = []
        for way in (w for w in WAYS if w.alpha_asked == "auto" and w.direction == "sae"):
            stage = self.stage("explain", "alphas", **way._asdict(), alphas=[0.25, 0.5, 1.0, 2.0, 4.0])
            rows = [
                {**about(stage), **way._asdict(), "alpha": alpha, "mean_iou": QUALITY[way] * (1 - 0.1 * abs(i - 2)),
                 "sd_iou": 0.1, "distinct": 1 / (1 + alpha**2), "n": 40, "n_empty": 2, "is_chosen": i == 2}
                for i, alpha in enumerate((0.25, 0.5, 1.0, 2.0, 4.0))
            ]  # fmt: skip
            found.append((stage, {"explanation_alphas": rows}))
        return found

    def values(self, way: Variant, metric: str) -> np.ndarray:
        """A measure of every feature; NaN where it says nothing."""
        return np.array([self.scores[way, f][metric] for f in self.features], dtype=float)

    def summary(self) -> tuple[StageSpec, dict[str, list[Row]]]:
        read = {f"explanations.{n}": stage.digest for n, stage in enumerate(self.stages.values())}
        stage = self.stage("score_explanations", "summary", read, vlm=VLM, metrics=[*METRICS, "naming"], min_iou=0.2)
        of = about(stage)
        tables = {
            "explanation_scores": [*self.scores.values()], "explanation_summary": [r for w in WAYS for r in self._means(w)],
            "explanation_tests": self._tests(), "explanation_agreement": self._agreement(),
            "selected_explanations": [self._chosen(f, vote) for vote in ("masks", "heatmaps") for f in self.features],
        }  # fmt: skip
        return stage, {name: [{**of, **row} for row in rows] for name, rows in tables.items()}

    def _means(self, way: Variant) -> list[Row]:
        said = {name: summarise(self.values(way, name)) for name in METRICS}
        said |= {"auroc_macro": summarise(self.values(way, "auroc")), "auroc_pooled": summarise(self.values(way, "auroc") * 0.98)}  # fmt: skip
        said |= {
            "named": summarise_share(self.values(way, "named")),
            "share_named": summarise(self.values(way, "iou") * 0),
        }
        empty = int(np.isnan(self.values(way, "iou")).sum())
        return [
            {**way._asdict(), "metric": name, "value": s.mean, "sd": s.sd, "low": s.low, "high": s.high, "n": s.n,
             "n_empty": empty, "is_candidate": way.direction == "sae"}
            for name, s in said.items()
        ]  # fmt: skip

    def _group(self, masking: str) -> dict[str, Variant]:
        return {way.method: way for way in WAYS if way.direction == "sae" and way.masking in (masking, "none")}

    def _tests(self) -> list[Row]:
        asked = list(product(("masks", "heatmaps"), METRICS))
        tests = []
        for masking, metric in asked:
            group = self._group(masking)
            scores = np.stack([self.values(way, metric) for way in group.values()], 1)
            tests.append(compare_methods(scores, list(group)))
        corrected = iter(correct_tests([test for some in tests for test in some]))
        return [
            {"vlm": VLM, "masking": masking, "metric": metric, **next(corrected).__dict__}
            for (masking, metric), some in zip(asked, tests, strict=True)
            for _ in some
        ]

    def _agreement(self) -> list[Row]:
        rows = []
        for masking, metric in product(("masks", "heatmaps"), (*METRICS, "auroc_macro", "auroc_pooled")):
            for (method, way), step in product(self._group(masking).items(), range(9)):
                value = QUALITY[way] * (1 + step / 10)
                n = len(self.features) * (8 - step) // 8
                same = {"vlm": VLM, "masking": masking, "method": method, "metric": metric, "threshold": step / 10}
                rows.append({**same, "value": value if n else None, "n": n})
        return rows

    def _chosen(self, feature: int, vote: str) -> Row:
        known = [way for way in self._group(vote).values() if self.scores[way, feature]["text"]]
        way = max(known, key=lambda way: self.scores[way, feature]["iou"])
        score = self.scores[way, feature]
        found = {
            "vote": vote,
            "mean_rank": 1.5,
            "is_tie": feature % 16 == 0,
            "n_methods": len(known),
            "passed": score["iou"] > 0.25,
        }
        names = ("feature", "sequence", "text", *METRICS, "abstraction", "context")
        return {**way._asdict(), **{name: score[name] for name in names}, **found}

    def map(self) -> tuple[StageSpec, dict[str, list[Row]]]:
        """The chosen texts by colour; the largest cluster is 0."""
        stage = self.stage("map_explanations", "map", {"summary": self.summary()[0].digest}, texts="selected", random_seed=42)  # fmt: skip
        chosen = [self._chosen(f, "masks") for f in self.features]
        sizes = [sum(name_of(f)[1] == colour for f in self.features) for colour in COLOURS]
        order = sorted(range(4), key=lambda i: (-sizes[i], i))
        clusters = {COLOURS[i]: n for n, i in enumerate(order)}
        of = about(stage)
        points, members = [], {name: [] for name in clusters}
        for row in chosen:
            shape, colour = name_of(row["feature"])
            spot = self.rng.normal(0, 0.3, 2) + np.array([SHAPES.index(shape), 3 * COLOURS.index(colour)])
            text = {name: row[name] for name in (*Variant._fields, "feature", "sequence", "text")}
            points.append({**of, **text, "encoder": "demo", "encoder_revision": None, "cluster": clusters[colour], "x": spot[0], "y": spot[1], "embedding": [1.0, 0.0]})  # fmt: skip
            members[colour].append(row)
        shown = [
            {**of, "cluster": n, "topic": f"{colour} object", "size": len(members[colour]),
             "sample": [r["feature"] for r in members[colour][:20]], "sample_texts": [r["text"] for r in members[colour][:20]]}
            for colour, n in clusters.items()
        ]  # fmt: skip
        return stage, {"explanation_map": points, "explanation_clusters": shown}
