"""Features of a made-up SAE on the demo world: every table against dense arrays, and whatever the work was cut into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.sae_features import describe, plan
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import CONCEPTS, HELD_OUT_INDICES, World, attributes
from miclip_core.world.truth import patch_classes
from tests.jobs.sae_features.lake_of_saes import CANONICAL, LATENTS, K, make_sae, make_spec, publish_sae
from tests.lakes import Lake

N, POSITIONS = 140, 64
WORLD = f"world:seed=0,n={N}"
TABLES = ("sae_codes", "sae_features", "sae_top_images", "sae_selectivity")


def run(folder: Path, saes: list[tuple[Any, str]], images: str = WORLD, **changes: Any) -> tuple[Lake, Any, list[str]]:
    lake = Lake(folder)
    refs = [publish_sae(lake, sae, site, seed) for seed, (sae, site) in enumerate(saes)]
    report = lake.run(make_spec(refs, images, **changes))
    assert report.exit_code == 0, report.failures
    return lake, report, refs


def tables(lake: Lake, report: Any, ref: str) -> dict[str, pa.Table]:
    return {name: lake.table(report, name, sae=ref) for name in TABLES}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory):
    """One SAE over stored activations: one bucket, three shards; and the rows it was made from."""
    lake, report, (ref,) = run(tmp_path_factory.mktemp("stored"), [(make_sae(), CANONICAL)], stored={})
    found = tables(lake, report, ref)
    return found, {name: lake.table(report, name) for name in ("activations", "embeddings", "images")}


@pytest.fixture(scope="module")
def dense(stored) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Codes [images, positions, latents] by plain numpy from the stored activations; image_index and ids of the images."""
    rows = stored[1]["activations"]
    x = np.array(rows["act"].to_pylist(), np.float64)
    sae = make_sae()
    p = x @ sae.W_enc.numpy().T.astype(np.float64) + sae.b_enc.numpy()
    kept = np.argsort(-p, axis=1)[:, :K]
    f = np.zeros_like(p)
    np.put_along_axis(f, kept, np.maximum(np.take_along_axis(p, kept, 1), 0), 1)
    index = rows["image_index"].to_numpy()[::POSITIONS]
    return f.reshape(-1, POSITIONS, LATENTS), index, rows["image_id"].to_pylist()[::POSITIONS]


def column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float64)


def test_codes_are_those_of_the_sae_and_lie_by_feature(stored, dense):
    codes, (f, index, ids) = stored[0]["sae_codes"], dense
    image, token, feature = np.nonzero(f)
    assert codes.num_rows == len(image) > 10_000
    order = np.lexsort((token, image, feature))
    assert codes["feature"].to_pylist() == feature[order].tolist()
    assert codes["image_index"].to_pylist() == index[image[order]].tolist()
    assert codes["image_id"].to_pylist() == [ids[i] for i in image[order]]
    assert codes["token"].to_pylist() == token[order].tolist()
    np.testing.assert_allclose(codes["value"].to_numpy(), f[image, token, feature][order], rtol=1e-4, atol=1e-4)


def test_every_latent_has_a_row_that_follows_from_its_codes(stored, dense):
    features, (f, _, _) = stored[0]["sae_features"], dense
    assert features["feature"].to_pylist() == list(range(LATENTS))
    active = f > 0
    assert features["n_active"].to_pylist() == active.sum((0, 1)).tolist()
    assert features["images_active"].to_pylist() == active.any(1).sum(0).tolist()
    np.testing.assert_allclose(column(features, "density"), active.mean((0, 1)))
    assert features["is_dead"].to_pylist() == (~active.any((0, 1))).tolist()
    assert features["is_dead"][LATENTS - 1].as_py() and features["kurtosis"][LATENTS - 1].as_py() is None
    alive = f[..., 0][active[..., 0]]
    row = features.slice(0, 1).to_pylist()[0]
    expected = {"mean": alive.mean(), "std": alive.std(), "min_pos": alive.min(), "max": alive.max()}
    expected |= {f"p{q}": np.quantile(alive, q / 100) for q in (50, 90, 99)}
    everything = f[..., 0].ravel()
    z = (everything - everything.mean()) / everything.std()
    expected |= {"skewness": (z**3).mean(), "kurtosis": (z**4).mean() - 3}
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert sum(row["histogram"]) == len(alive) and len(row["histogram"]) == 64
    sae = make_sae()
    unit = sae.W_dec.double().numpy() / np.linalg.norm(sae.W_dec.double().numpy(), axis=1, keepdims=True)
    cosine = unit @ unit[0]
    assert row["neighbours"] == np.argsort(-cosine)[1:4].tolist()
    assert row["neighbour_cos"] == pytest.approx(np.sort(cosine)[::-1][1:4].tolist(), abs=1e-6)
    assert row["decoder_norm"] == pytest.approx(1, abs=1e-6) and row["b_enc"] == pytest.approx(float(sae.b_enc[0]))


def test_top_images_have_the_largest_codes_and_maps_show_where(stored, dense):
    top, (f, index, ids) = stored[0]["sae_top_images"], dense
    uris = dict(
        zip(stored[1]["images"]["image_index"].to_pylist(), stored[1]["images"]["uri"].to_pylist(), strict=True)
    )
    for feature in range(LATENTS):
        rows = top.filter(pa.compute.equal(top["feature"], feature)).to_pylist()
        largest = f[..., feature].max(1)
        expected = sorted((i for i in range(len(f)) if largest[i] > 0), key=lambda i: (-largest[i], ids[i]))[:4]
        assert [row["image_id"] for row in rows] == [ids[i] for i in expected]
        for rank, (row, i) in enumerate(zip(rows, expected, strict=True)):
            assert row["rank"] == rank and row["image_index"] == index[i] and row["uri"] == uris[index[i]]
            assert row["value"] == pytest.approx(largest[i], rel=1e-4) and row["token"] == f[i, :, feature].argmax()
            assert row["image_mean"] == pytest.approx(f[i, :, feature].mean(), rel=1e-4)
            assert (row["grid_h"], row["grid_w"]) == (8, 8)
            assert row["map"] == pytest.approx(f[i, :, feature].tolist(), rel=1e-4, abs=1e-4)


def test_top_images_may_go_by_their_mean_code(tmp_path, dense):
    lake, report, (ref,) = run(tmp_path, [(make_sae(), CANONICAL)], rank_by="mean", tables=["top_images"])
    top, (f, _, ids) = tables(lake, report, ref)["sae_top_images"], dense
    order = []
    for feature in range(LATENTS):
        rows = top.filter(pa.compute.equal(top["feature"], feature)).to_pylist()
        found = f[..., feature].mean(1)
        expected = sorted((i for i in range(len(f)) if f[i, :, feature].max() > 0), key=lambda i: -found[i])[:4]
        assert [row["image_id"] for row in rows] == [ids[i] for i in expected]
        assert [row["image_mean"] for row in rows] == pytest.approx(found[expected].tolist(), rel=1e-4)
        order.append(sorted(expected, key=lambda i: -f[i, :, feature].max()) != expected)
    assert any(order)


def test_clarity_and_monosemanticity_equal_loops_over_pairs_of_embeddings(stored, dense):
    f, index, _ = dense
    embeddings = dict(
        zip(
            stored[1]["embeddings"]["image_index"].to_pylist(),
            stored[1]["embeddings"]["embedding"].to_pylist(),
            strict=True,
        )
    )
    unit = np.array([embeddings[i] for i in index.tolist()])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    apart = ~np.eye(len(unit), dtype=bool)
    features, top = stored[0]["sae_features"].to_pylist(), stored[0]["sae_top_images"].to_pylist()
    place = {i: n for n, i in enumerate(index.tolist())}
    for feature in (0, 5, 11):
        best = [place[row["image_index"]] for row in top if row["feature"] == feature]
        chosen = cosine[np.ix_(best, best)][~np.eye(len(best), dtype=bool)]
        row = features[feature]
        assert row["clarity"] == pytest.approx(chosen.mean(), abs=1e-6)
        assert row["clarity_baseline"] == pytest.approx(cosine[apart].mean(), abs=1e-6)
        random = np.random.default_rng(0)
        sets = [random.choice(len(unit), 4, replace=False) for _ in range(4000)]
        spread = np.std([cosine[np.ix_(s, s)][~np.eye(4, dtype=bool)].mean() for s in sets])
        assert row["clarity_z"] == pytest.approx((chosen.mean() - cosine[apart].mean()) / spread, rel=0.1)
        weight = np.outer(f[..., feature].max(1), f[..., feature].max(1))[apart]
        assert row["monosemanticity"] == pytest.approx((weight * cosine[apart]).sum() / weight.sum(), abs=1e-5)
    assert features[LATENTS - 1]["clarity"] is None and features[LATENTS - 1]["monosemanticity"] is None


def auroc(yes: np.ndarray, no: np.ndarray) -> float:
    return float(((yes[:, None] > no).sum() + 0.5 * (yes[:, None] == no).sum()) / len(yes) / len(no))


def f1(yes: np.ndarray, no: np.ndarray, threshold: float) -> float:
    hits, alarms = (yes >= threshold).sum(), (no >= threshold).sum()
    return float(2 * hits / (hits + alarms + len(yes)))


@pytest.fixture(scope="module")
def scenes(dense):
    return attributes(World(seed=0), HELD_OUT_INDICES.start + dense[1])


def expected_scores(level: str, dense, scenes) -> dict[tuple[int, str], tuple[float, float, int, int]]:
    """(feature, concept) -> AUROC, best F1, positives and known items, for shapes and backgrounds, by counting pairs."""
    f, _, _ = dense
    if level == "image":
        codes = f.max(1)
        classes = {"shape": scenes.shape, "background": scenes.background[:, None]}
    else:
        codes = f.reshape(-1, LATENTS)
        classes = {k: v.reshape(-1, 1) for k, v in patch_classes(scenes, render_scenes(scenes)[1], 8).items()}
    found = {}
    for category in ("shape", "background"):
        known = (classes[category] >= 0).any(1)
        for number, value in enumerate(CONCEPTS[category]):
            has = (classes[category] == number).any(1)
            for feature in range(0, LATENTS - 1, 4):
                yes, no = codes[has, feature], codes[known & ~has, feature]
                thresholds = set(yes[yes > 0].tolist())
                best = max((f1(yes, no, t) for t in thresholds), default=0.0)
                found[feature, f"{category}={value}"] = (auroc(yes, no), best, len(yes), int(known.sum()))
    return found


@pytest.mark.parametrize("level", ["image", "patch"])
def test_selectivity_equals_counting_pairs_over_labels_and_planted_truth(level: str, stored, dense, scenes):
    rows = {(r["feature"], r["concept"]): r for r in stored[0]["sae_selectivity"].to_pylist() if r["level"] == level}
    expected = expected_scores(level, dense, scenes)
    checked = 0
    for key, (area, best, positives, n) in expected.items():
        if key in rows:
            row = rows[key]
            assert (row["n_pos"], row["n"]) == (positives, n)
            assert (row["auroc"], row["best_f1"]) == pytest.approx((area, best), abs=2e-6), key
            if row["best_f1"]:
                assert row["best_f1"] == pytest.approx(2 / (1 / row["precision"] + 1 / row["recall"]))
            checked += 1
    assert checked > 20


def test_the_best_concepts_of_a_feature_and_features_of_a_concept_are_there(stored, dense, scenes):
    rows = stored[0]["sae_selectivity"].to_pylist()
    by_feature: dict[Any, dict[int, float]] = {}
    by_concept: dict[Any, dict[int, float]] = {}
    for row in rows:
        if row["rank_in_feature"] is not None:
            by_feature.setdefault((row["level"], row["feature"]), {})[row["rank_in_feature"]] = row["auroc"]
        if row["rank_in_concept"] is not None:
            by_concept.setdefault((row["level"], row["concept"]), {})[row["rank_in_concept"]] = row["auroc"]
    assert all(row["rank_in_feature"] is not None or row["rank_in_concept"] is not None for row in rows)
    for groups, most in ((by_feature, 5), (by_concept, 10)):
        for ranks in groups.values():
            assert sorted(ranks) == list(range(most))
            assert [ranks[i] for i in range(most)] == sorted(ranks.values(), reverse=True)
    assert LATENTS - 1 not in {feature for _, feature in by_feature}
    for level in ("image", "patch"):
        scores = expected_scores(level, dense, scenes)
        for concept in ("shape=star", "background=white"):
            known = [scores[feature, concept][0] for feature in range(0, LATENTS - 1, 4)]
            assert max(known) <= by_concept[level, concept][0] + 2e-6


def test_tokens_from_a_live_pass_other_shards_buckets_and_chunks_give_identical_tables(
    stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plan, "BUCKET_CODES", 8000)
    monkeypatch.setattr(describe, "CHUNK_CODES", 1500)
    lake, report, (ref,) = run(tmp_path, [(make_sae(), CANONICAL)], shard_rows=128)
    for name, table in tables(lake, report, ref).items():
        assert table.equals(stored[0][name]), name
    assert report.state.stages[-1].shards > 6


def test_siblings_share_the_pass_and_change_nothing(stored, tmp_path: Path):
    sampled, cls = f"{CANONICAL}:sample(4,0)", "resid_post.3@cls"
    saes = [(make_sae(), CANONICAL), (make_sae(1, 40, signed=True), sampled), (make_sae(2), cls)]
    lake, report, refs = run(tmp_path, saes)
    alone = tables(lake, report, refs[0])
    assert all(alone[name].equals(stored[0][name]) for name in TABLES)
    other = tables(lake, report, refs[1])
    assert other["sae_features"].num_rows == 40 and set(other["sae_codes"]["token"].to_pylist()) == set(
        range(POSITIONS)
    )
    assert set(other["sae_codes"]["site"].to_pylist()) == {CANONICAL}
    last = tables(lake, report, refs[2])
    assert last["sae_top_images"]["map"].null_count == last["sae_top_images"].num_rows > 0
    assert set(last["sae_selectivity"]["level"].to_pylist()) == {"image"}


def test_an_sae_of_another_width_is_named_its_siblings_are_described_and_only_by_what_was_asked_for(tmp_path: Path):
    lake = Lake(tmp_path)
    refs = [publish_sae(lake, make_sae(), CANONICAL), publish_sae(lake, make_sae(width=48), CANONICAL, seed=1)]
    report = lake.run(make_spec(refs, "world:seed=0,n=20", tables=["top_images"]))
    (message,) = report.failures
    assert report.exit_code == 1 and refs[1] in message and "d=48" in message
    made = [name for name, table in tables(lake, report, refs[0]).items() if table.num_rows]
    assert made == ["sae_top_images"]
