"""A lake of two made-up models whose few rows are in all tables that the library of named queries reads, small enough to ask by hand."""

from __future__ import annotations

from typing import Any

from cluster.stores.base import Store
from schemas.plans import StageSpec
from tests.made_up_descriptions import publish_rows
from tests.rows import make_rows

A, B, BOTH = "demo:a", "demo:b", "demo:a demo:b"
SITE, DEEP = "resid_post.3@patch", "mlp_act.2@patch"
SAE = "sae:5ae"
ODD = "it's a \\ ring; -- :unit"
"""A sentence with all that literals and comments are made of."""
Row = dict[str, Any]

FEATURE = {"model": A, "site": SITE, "sae": SAE}
WAY = {
    "vlm": "demo:v", "method": "topk", "masking": "masks", "direction": "sae", "positions": "none", "alpha_asked": "0",
    "alpha_unit": "p90", "sequence": 0,
}  # fmt: skip
STEERED = {**WAY, "method": "steering", "masking": "none", "positions": "all", "alpha_asked": "2"}


def row(table: str, **values: Any) -> Row:
    """One row of a table, of which only these columns matter."""
    return {name: value for name, value in {**make_rows(table, 1).to_pylist()[0], **values}.items() if name != "stage"}


def publish_zoo(store: Store) -> None:
    """Publish it: one stage per call below, each of its own digest."""
    publish(store, "index_images", "folder:/x", images=[image(0, "circle"), image(1, "star"), image(2, None)])
    publish(store, "index_images", "folder:/y", images=[image(0, "circle")], bad_inputs=[
        bad("truncated", "/b"), bad("truncated", "/a"), bad("empty", "/c"),
    ])  # fmt: skip
    for model, n in ((A, 1), (A, 2), (B, 3)):
        publish(store, "inspect", model, n=n, models=[row("models", model=model, family="vit", width=8, revision=None)])
    publish(store, "extract", A, SITE, predictions=predictions("circle", "circle"), top_images=[
        top(1, 1, 0.5), top(1, 0, 0.75), top(2, 0, 1.0),
    ])  # fmt: skip
    publish(store, "extract", B, SITE, predictions=predictions("star", "circle"))
    for n, fvu in enumerate((0.25, 0.125)):
        values = {"site": SITE, "sae": f"sae:{n}", "arch": "topk", "latents": 8, "k": 2, "fvu": fvu}
        publish(store, "train_sae", A, SITE, n, sae_summary=[row("sae_summary", model=A, **values)])
    publish(store, "sae_features", A, SITE, sae_features=[
        feature(0, clarity_z=5.0, images_active=30), feature(1, clarity_z=None, images_active=40),
        feature(2, clarity_z=6.0, images_active=3), feature(3, clarity_z=5.0, images_active=30),
    ], sae_selectivity=[
        tells(0, "colour=red", 0.875, 0, 1), tells(0, "shape=star", 0.5, 1, None), tells(3, "colour=red", 1.0, 0, 0),
        tells(2, "shape=ring", 1.0, None, 0, level="patch"),
    ], sae_top_images=[code(0, 0, 2.0, "/0"), code(0, 1, 1.0, "/1"), code(3, 0, 3.0, None)])  # fmt: skip
    publish(store, "describe", A, DEEP, unit_concepts=[
        named(1, "red", "describe", 0, "miclip in", seed=1), named(1, "blue", "describe", 0, "miclip in", seed=0),
        named(1, "green", "describe", 1, "miclip in", seed=0), named(1, "pink", "describe", 0, "clip_dissect"),
        named(2, "red", "describe", 0, "act_values", is_dead=True), named(1, "red", "localise", 0, "clip_dissect"),
        named(7, "red", "localise", 1, "clip_dissect"), named(5, "dark red", "localise", 0, "clip_dissect"),
        named(0, "circle", "describe", 0, "clip_dissect", site=SITE, sae=SAE, unit_kind="features"),
    ])  # fmt: skip
    publish(store, "describe", B, SITE, unit_concepts=[
        named(9, "violet", "describe", 0, "clip_dissect", model=B, site=SITE),
    ])  # fmt: skip
    publish(store, "rosetta_pair", BOTH, rosetta_buddies=[
        buddies((A, DEEP, 1), (B, DEEP, 4), 0.75), buddies((B, SITE, 9), (A, DEEP, 1), 0.875),
        buddies((A, DEEP, 1), (B, DEEP, 5), 0.5, is_below_null=True), buddies((A, DEEP, 1), (A, DEEP, 2), 1.0),
    ])  # fmt: skip
    publish(store, "mine_rosetta", BOTH, rosetta_universality=[
        shared(A, 1, 2, 0.875), shared(A, 2, 0, None), shared(B, 4, 1, 0.75), shared(B, 5, 1, 0.25), shared(B, 4, 2, 0.75, k=5),
    ], rosetta_cliques=[
        member(0, A, 1, 0.5), member(0, B, 4, 0.5), member(1, B, 6, 0.25, size=1), member(0, A, 3, 0.125, k=1),
    ])  # fmt: skip
    publish(store, "explain", A, SITE, explanations=[
        row("explanations", **FEATURE, **WAY, feature=0, status="ok", text="a red ring"),
        row("explanations", **FEATURE, **STEERED, feature=0, status="ok", text=ODD),
        row("explanations", **FEATURE, **{**WAY, "direction": "random"}, feature=0, status="ok", text="noise"),
        row("explanations", **FEATURE, **WAY, feature=1, status="empty", text=None),
    ])  # fmt: skip
    publish(store, "score_explanations", A, SITE, explanation_scores=[
        row("explanation_scores", **FEATURE, **WAY, feature=0, status="ok", text="a red ring", iou=0.25),
    ], selected_explanations=[
        chosen(0, "a red ring", 0.25), chosen(1, "Red things", 0.5, vote="heatmaps"), chosen(2, ODD, None),
    ], explanation_summary=[
        way("topk", "iou", 0.25), way("steering", "iou", 0.5), way("steering", "clip", None),
    ])  # fmt: skip
    publish(store, "evaluate", A, SITE, method_scores=[
        score("miclip in", 0.25, seed=0), score("miclip in", 0.75, seed=1), score("clip_dissect", 0.625),
        score("act_values", None),
    ])  # fmt: skip
    publish(store, "intervene", A, SITE, intervention_summary=[
        change("miclip in", 0.0, -12.5, seed=0), change("miclip in", 0.0, -25.0, seed=None), change("miclip in", 2.0, 1.0, op="add"),
    ])  # fmt: skip
    publish(store, "drift", A, drift=[
        moved("metric", "fvu", 0.5, 0.25), moved("metric", "l0", 8.0, 9.0), moved("metric", "top1", None, 1.0),
        moved("concept", "red", 3.0, 1.0),
    ])  # fmt: skip


def publish(store: Store, kind: str, subject: str, site: str | None = None, n: int = 0, **tables: list[Row]) -> str:
    """One stage with these rows; returns its digest."""
    params = {"n": n, **({} if site is None else {"site": site}), "note": ODD}
    stage = StageSpec(kind=kind, method=1, subject=subject, output=next(iter(tables)), params=params)
    publish_rows(store, stage, tables)
    return stage.digest


def image(n: int, label: str | None) -> Row:
    return row("images", image_id=f"i{n}", image_index=n, uri=f"/x/{n}", label=label)


def bad(reason: str, uri: str) -> Row:
    return row("bad_inputs", reason=reason, uri=uri, detail="found")


def predictions(*classes: str) -> list[Row]:
    """The first class of every image, each at 0.75, and a second that is right and does not count."""
    rows = []
    for n, name in enumerate((*classes, "circle")):
        for rank, class_name in enumerate((name, "star" if n else "circle")):
            values = {"image_id": f"i{n}", "rank": rank, "class_name": class_name, "probability": 0.75 - rank / 2}
            rows.append(row("predictions", **values))
    for found in rows:
        del found["model"]
    return rows


def top(unit: int, image: int, value: float) -> Row:
    rank = int(value == 0.5)
    return row("top_images", model=A, site=DEEP, unit=unit, rank=rank, image_id=f"i{image}", value=value, token=3)


def feature(n: int, **values: Any) -> Row:
    return row("sae_features", **FEATURE, feature=n, monosemanticity=0.5, **values)


def tells(
    n: int, concept: str, auroc: float, in_feature: int | None, in_concept: int | None, level: str = "image"
) -> Row:
    ranks = {"rank_in_feature": in_feature, "rank_in_concept": in_concept}
    return row("sae_selectivity", **FEATURE, feature=n, level=level, concept=concept, auroc=auroc, **ranks)


def code(n: int, rank: int, value: float, uri: str | None) -> Row:
    return row(
        "sae_top_images", **FEATURE, feature=n, rank=rank, value=value, uri=uri, token=2, image_id="i0", map=None
    )


def named(unit: int, concept: str, direction: str, rank: int, variant: str, **values: Any) -> Row:
    known = {"model": A, "site": DEEP, "sae": None, "unit_kind": "neurons", "seed": None, "is_dead": False, **values}
    words = {"method": variant.split()[0], "variant": variant, "concept": concept, "direction": direction}
    return row("unit_concepts", unit=unit, rank=rank, score=0.5, **words, **known)


def buddies(a: tuple[str, str, int], b: tuple[str, str, int], r: float, is_below_null: bool = False) -> Row:
    ends = {
        f"{name}_{end}": v for end, unit in (("a", a), ("b", b)) for name, v in zip(("model", "site", "unit"), unit)
    }
    known = {"sae_a": None, "sae_b": None, "place_r": 0.125, "null_q999": 0.25, "is_below_null": is_below_null}
    return row("rosetta_buddies", **ends, **known, r=r)


def shared(model: str, unit: int, degree: int, best_r: float | None, k: int = 1) -> Row:
    known = {"site": DEEP, "sae": None, "unit_kind": "neurons", "models": 2}
    return row("rosetta_universality", model=model, unit=unit, degree=degree, best_r=best_r, k=k, **known)


def member(clique: int, model: str, unit: int, r: float, size: int = 2, k: int = 5) -> Row:
    known = {"site": DEEP, "sae": None, "unit_kind": "neurons", "min_r": r, "mean_r": r}
    return row("rosetta_cliques", clique=clique, size=size, model=model, unit=unit, k=k, **known)


def chosen(n: int, text: str, iou: float | None, vote: str = "masks") -> Row:
    scores = {"iou": iou, "clip": 0.5, "synthetic": 1.0, "passed": True}
    return row("selected_explanations", **{**FEATURE, **WAY}, feature=n, text=text, vote=vote, **scores)


def way(method: str, metric: str, value: float | None) -> Row:
    return row("explanation_summary", **{**FEATURE, **WAY, "method": method}, metric=metric, value=value, n=8)


def score(variant: str, value: float | None, seed: int | None = None) -> Row:
    known = {"site": SITE, "sae": None, "unit_kind": "neurons", "measure": "accuracy", "ceiling": 1.0, "n": 8}
    words = {"method": variant.split()[0], "variant": variant, "seed": seed}
    return row("method_scores", model=A, value=value, **words, **known)


def change(variant: str, beta: float, dacc: float, seed: int | None = 0, op: str = "scale") -> Row:
    known = {"site": SITE, "sae": None, "unit_kind": "neurons", "error_mode": "keep"}
    return row("intervention_summary", model=A, variant=variant, seed=seed, op=op, beta=beta, dacc=dacc, **known)


def moved(aspect: str, item: str, before: float | None, after: float) -> Row:
    known = {"cell": "sae", "subject": A, "subject_before": A, "status": "changed", "setting": ""}
    return row("drift", aspect=aspect, item=item, before=before, after=after, **known)
