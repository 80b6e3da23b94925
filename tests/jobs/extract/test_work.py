"""Extraction end to end in one process, against oracles that share no code with it."""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.lakes import SHAPES, Lake, export, make_extract

CLIP, RESNET = "demo:clip-p8", "demo:resnet-sup"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def full(world: Path, tmp_path_factory: pytest.TempPathFactory):
    """Every output of one CLIP at two sites, in shards of 32 images and batches of 16."""
    lake = Lake(tmp_path_factory.mktemp("lake"))
    spec = make_extract(
        world,
        (CLIP,),
        sites=["resid_post.-2@patch:mean", "mlp_act.1@patch"],
        outputs=["activations", "activation_moments", "top_images", "embeddings", "predictions", "text_embeddings"],
        classes={"names": SHAPES, "templates": ["a {}", "one {}"]},
        texts=["a red circle", "  a blue star "],
        top_k=5,
        round_to="fp32",
    )
    report = lake.run(spec)
    assert report.exit_code == 0, report.failures
    return lake, report


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=np.float32)


def library_model():
    """The untouched open_clip model and its own preprocessing, loaded the way its documentation says."""
    import open_clip

    folder = f"local-dir:{files('miclip_core') / 'world' / 'zoo' / 'clip-p8'}"
    model, preprocess = open_clip.create_model_from_pretrained(folder)
    return model.eval(), preprocess, open_clip.get_tokenizer(folder)


@pytest.fixture(scope="module")
def oracle(world: Path):
    """Plain forward hooks on the library's model over all files, one image at a time."""
    model, preprocess, tokenizer = library_model()
    blocks = model.visual.transformer.resblocks
    seen: dict[str, list[np.ndarray]] = {"resid": [], "mlp": [], "embedding": []}
    handles = [
        blocks[-2].register_forward_hook(lambda m, i, o: seen["resid"].append(o[0, 1:].mean(0).numpy())),
        blocks[1].mlp.gelu.register_forward_hook(lambda m, i, o: seen["mlp"].append(o[0, 1:].numpy())),
    ]
    files = sorted((world / "images").glob("*.png"))
    with torch.no_grad():
        for path in files:
            seen["embedding"].append(model.encode_image(preprocess(Image.open(path))[None])[0].numpy())
        for handle in handles:
            handle.remove()
        texts = torch.nn.functional.normalize(model.encode_text(tokenizer(["a red circle", "a blue star"])), dim=-1)
        columns = []
        for shape in SHAPES:
            both = torch.nn.functional.normalize(model.encode_text(tokenizer([f"a {shape}", f"one {shape}"])), dim=-1)
            columns.append(torch.nn.functional.normalize(both.mean(0), dim=-1))
    arrays = {name: np.stack(values) for name, values in seen.items()}
    return arrays, texts.numpy(), torch.stack(columns).numpy(), [path.name for path in files]


def image_order(lake: Lake, report, names: list[str]) -> list[int]:
    """Position in the file list of each unique image, in index order."""
    images = lake.table(report, "images")
    keep = [i for i, d in enumerate(images["duplicate_of"].to_pylist()) if d is None]
    uris = [images["uri"][i].as_py().rsplit("/", 1)[1] for i in keep]
    return [names.index(uri) for uri in uris]


def test_pooled_activations_equal_a_plain_hook_on_the_library_model(full, oracle):
    lake, report = full
    order = image_order(lake, report, oracle[3])
    rows = lake.table(report, "activations", site="resid_post.3@patch:mean")
    assert rows.num_rows == len(order) and set(rows["token"].to_pylist()) == {-1}
    np.testing.assert_allclose(to_matrix(rows["act"]), oracle[0]["resid"][order], atol=1e-5)


def test_patch_activations_are_one_row_per_image_and_patch_in_row_major_order(full, oracle):
    lake, report = full
    order = image_order(lake, report, oracle[3])
    rows = lake.table(report, "activations", site="mlp_act.1@patch")
    assert rows["token"].to_pylist() == list(range(64)) * len(order)
    np.testing.assert_allclose(to_matrix(rows["act"]), oracle[0]["mlp"][order].reshape(-1, 384), atol=1e-5)


def test_embeddings_and_texts_equal_the_library(full, oracle):
    lake, report = full
    order = image_order(lake, report, oracle[3])
    rows = lake.table(report, "embeddings")
    np.testing.assert_allclose(to_matrix(rows["embedding"]), oracle[0]["embedding"][order], atol=1e-5)
    expected = np.linalg.norm(oracle[0]["embedding"][order], axis=1)
    np.testing.assert_allclose(rows["norm"].to_numpy(), expected, rtol=1e-5)
    texts = lake.table(report, "text_embeddings")
    assert texts["text"].to_pylist() == ["a red circle", "a blue star", *SHAPES]
    np.testing.assert_allclose(to_matrix(texts["embedding"]), np.vstack([oracle[1], oracle[2]]), atol=1e-5)


def test_texts_that_the_text_tower_does_not_see_to_their_end_are_counted(world: Path, tmp_path: Path):
    lake = Lake(tmp_path)
    long = "a red circle beside " * 30
    outputs = {"outputs": ["text_embeddings"], "sites": []}
    spec = make_extract(
        world,
        (CLIP,),
        **outputs,
        texts=["a red circle", long],
        classes={"names": ["star", long], "templates": ["a {}"]},
    )
    assert lake.run(spec).exit_code == 0
    notes = [note for event in lake.events for note in event.get("notes", ())]
    (cut,) = [note for note in notes if "lose their end" in note]
    assert f"2 of 4 texts are longer than the context of {CLIP}" in cut and "'a red circle beside" in cut


def test_predictions_are_the_best_classes_by_cosine(full, oracle):
    lake, report = full
    order = image_order(lake, report, oracle[3])
    embedding = oracle[0]["embedding"][order]
    cosine = embedding / np.linalg.norm(embedding, axis=1, keepdims=True) @ oracle[2].T
    rows = lake.table(report, "predictions")
    best = np.argsort(-cosine, axis=1)[:, :5].reshape(-1)
    assert rows["class_id"].to_pylist() == best.tolist()
    assert rows["class_name"][0].as_py() == SHAPES[best[0]]
    np.testing.assert_allclose(rows["score"].to_numpy(), np.sort(cosine, axis=1)[:, ::-1][:, :5].reshape(-1), atol=1e-5)


def test_moments_equal_numpy_over_all_rows(full, oracle):
    lake, report = full
    acts = oracle[0]["mlp"][image_order(lake, report, oracle[3])].reshape(-1, 384).astype(np.float64)
    rows = lake.table(report, "activation_moments", site="mlp_act.1@patch")
    assert rows["unit"].to_pylist() == list(range(384)) and set(rows["n"].to_pylist()) == {len(acts)}
    np.testing.assert_allclose(rows["mean"].to_numpy(), acts.mean(0), atol=1e-6)
    np.testing.assert_allclose(rows["variance"].to_numpy(), acts.var(0), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(rows["max"].to_numpy(), acts.max(0), atol=1e-5)
    np.testing.assert_allclose(rows["min"].to_numpy(), acts.min(0), atol=1e-5)
    np.testing.assert_allclose(rows["positive"].to_numpy(), (acts > 0).mean(0), atol=1e-3)


def test_top_images_are_those_of_a_full_sort(full, oracle):
    lake, report = full
    order = image_order(lake, report, oracle[3])
    acts = oracle[0]["mlp"][order]  # [images, patches, units]
    rows = lake.table(report, "top_images", site="mlp_act.1@patch")
    assert rows.num_rows == 384 * 5
    strongest = acts.max(1)
    np.testing.assert_allclose(rows["value"].to_numpy().reshape(384, 5), -np.sort(-strongest, axis=0)[:5].T, atol=1e-5)
    indices = lake.table(report, "activations", site="resid_post.3@patch:mean")["image_index"].to_pylist()
    first = rows.filter(pa.compute.equal(rows["rank"], 0))
    assert first["image_index"].to_pylist() == [indices[i] for i in strongest.argmax(0)]
    assert first["token"].to_pylist() == [int(acts[i, :, u].argmax()) for u, i in enumerate(strongest.argmax(0))]


def test_shard_and_batch_size_change_nothing_but_the_last_digits(world, full, tmp_path):
    lake, report = full
    other = Lake(tmp_path)
    spec = make_extract(
        world,
        (CLIP,),
        sites=["mlp_act.1@patch"],
        outputs=["activations", "top_images"],
        top_k=5,
        round_to="fp32",
        batch_size=7,
        shard_rows=19,
    )
    again = other.run(spec)
    a = lake.table(report, "activations", site="mlp_act.1@patch")
    b = other.table(again, "activations")
    assert a["image_id"].to_pylist() == b["image_id"].to_pylist()
    np.testing.assert_allclose(to_matrix(a["act"]), to_matrix(b["act"]), atol=2e-6)
    top_a = lake.table(report, "top_images", site="mlp_act.1@patch").drop_columns(["stage"])
    top_b = other.table(again, "top_images").drop_columns(["stage"])
    same = np.mean([x == y for x, y in zip(top_a["image_id"].to_pylist(), top_b["image_id"].to_pylist())])
    assert same > 0.999


def test_one_site_more_computes_that_site_alone_and_effort_recomputes_nothing(world, tmp_path):
    lake = Lake(tmp_path)
    one = make_extract(world, (CLIP,), outputs=["activations"])
    assert lake.run(one).exit_code == 0 and lake.count("published") == 3  # model, images, one site
    assert lake.run(one).exit_code == 0 and lake.count("published") == 0 and lake.count("shard_done") == 0
    effort = make_extract(
        world, (CLIP,), outputs=["activations"], batch_size=5, shard_rows=7, resources={"workers": 7, "cpus": 2.0}
    )
    assert lake.run(effort).exit_code == 0 and lake.count("shard_done") == 0
    two = make_extract(world, (CLIP,), outputs=["activations"], sites=["resid_post.-2@patch:mean", "resid_post.-1@cls"])
    report = lake.run(two)
    assert report.exit_code == 0 and [e["output"] for e in lake.events if e["event"] == "published"] == ["activations"]
    done = [e for e in lake.events if e["event"] == "shard_done"]
    assert len(done) == 3 and all(len(e["stages"]) == 1 for e in done)


def copy_model(name: str, folder: Path, change=None) -> str:
    """A demo model as a folder of one's own, its weights changed; returns its ref."""
    shutil.copytree(str(files("miclip_core") / "world" / "zoo" / name), folder)
    if change is not None:
        path = folder / "open_clip_model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
    return f"open_clip:{name}@file:{folder}"


def test_changed_weights_recompute_that_model_alone(world, tmp_path):
    models = tuple(copy_model(name, tmp_path / name) for name in ("clip-p8", "clip-rn"))
    lake, spec = Lake(tmp_path / "lake"), make_extract(world, models, outputs=["embeddings"], sites=[])
    assert lake.run(spec).exit_code == 0
    path = tmp_path / "clip-rn" / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["visual.attnpool.c_proj.weight"] *= 2
    save_file(weights, path)
    assert lake.run(spec).exit_code == 0
    published = [e for e in lake.events if e["event"] == "published"]
    assert [(e["kind"], e["subject"]) for e in published] == [("inspect", models[1]), ("extract", models[1])]
    (tmp_path / "clip-p8" / "open_clip_model.safetensors").touch()
    assert lake.run(spec).exit_code == 0
    assert [e["kind"] for e in lake.events if e["event"] == "published"] == ["inspect"]  # touched, not changed


def test_a_classifier_predicts_with_its_own_head(world, tmp_path):
    lake = Lake(tmp_path)
    report = lake.run(make_extract(world, (RESNET,), sites=[], outputs=["predictions"], predictions_k=1))
    assert report.exit_code == 0, report.failures
    rows = lake.table(report, "predictions")
    images = {i["image_id"]: i for i in lake.table(report, "images").to_pylist()}
    single = [r for r in rows.to_pylist() if dict(images[r["image_id"]]["attributes"])["objects"] == "1"]
    right = [r["class_name"] == images[r["image_id"]]["label"] for r in single]
    assert len(right) > 20 and np.mean(right) > 0.9


def test_a_model_that_fails_to_load_does_not_stop_the_others(world, tmp_path):
    broken = copy_model("clip-p8", tmp_path / "broken")
    weights = tmp_path / "broken" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    lake = Lake(tmp_path / "lake")
    models = (broken, "demo:clip-rn")
    report = lake.run(make_extract(world, models, sites=[], outputs=["embeddings"]))
    assert report.exit_code == 1 and any("clip-p8@file" in f for f in report.failures)
    assert set(lake.table(report, "embeddings")["model"].to_pylist()) == {"demo:clip-rn"}


def test_values_beyond_fp16_stop_with_the_site_and_the_way_out(world, tmp_path):
    model = copy_model(
        "clip-p8", tmp_path / "huge", lambda w: w.update({"visual.proj": w["visual.proj"].float() * 1e6})
    )
    lake = Lake(tmp_path / "lake")
    report = lake.run(make_extract(world, (model,), sites=[], outputs=["embeddings"]))
    assert report.exit_code == 1 and "does not fit fp16" in report.failures[0] and "round_to" in report.failures[0]
    assert not [key for key in lake.store.list("tables") if key.startswith("tables/embeddings")]
    assert lake.run(make_extract(world, (model,), sites=[], outputs=["embeddings"], round_to="fp32")).exit_code == 0


def test_nonfinite_activations_stop_or_are_set_aside_by_image(world, tmp_path):
    """A weight of infinity at the site makes every image non-finite; set aside, the table is empty and says why."""
    model = copy_model("clip-p8", tmp_path / "bad", lambda w: w["visual.proj"][0, 0].fill_(float("inf")))
    lake = Lake(tmp_path / "lake")
    changes = {"sites": ["resid_post.0@cls"], "outputs": ["embeddings", "activations"]}
    report = lake.run(make_extract(world, (model,), **changes))
    assert report.exit_code == 1 and "embedding is NaN or infinite" in " ".join(report.failures)
    report = lake.run(make_extract(world, (model,), on_nonfinite="quarantine", **changes))
    assert report.exit_code == 0, report.failures
    rows = lake.table(report, "bad_inputs").to_pylist()
    n_images = len(lake.table(report, "activations"))  # the other site is untouched
    assert n_images >= 79 and len(rows) == n_images and {r["reason"] for r in rows} == {"nonfinite"}


def test_changed_and_vanished_images_stop_or_are_set_aside(tmp_path):
    world = export(tmp_path / "world", 40)
    lake = Lake(tmp_path / "lake")
    assert lake.run(make_extract(world, (RESNET,), sites=[], outputs=["predictions"])).exit_code == 0  # indexed
    images = sorted((world / "images").glob("*.png"))
    stamps = [(path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in images]
    data = bytearray(images[3].read_bytes())
    data[-20] ^= 1  # same size and stamp, other bytes: the listing cannot see it, the checksum does
    images[3].write_bytes(bytes(data))
    os.utime(images[3], ns=stamps[3])
    report = lake.run(make_extract(world, ("demo:clip-rn",), sites=[], outputs=["embeddings"]))
    assert (
        report.exit_code == 1 and "000003.png" in report.failures[0] and "differ from the index" in report.failures[0]
    )
    report = lake.run(make_extract(world, ("demo:clip-rn",), sites=[], outputs=["embeddings"], on_changed="quarantine"))
    assert report.exit_code == 0
    assert [(r["uri"].rsplit("/", 1)[1], r["reason"]) for r in lake.table(report, "bad_inputs").to_pylist()] == [
        ("000003.png", "checksum")
    ]
    assert lake.table(report, "embeddings").num_rows == 39


def test_a_worker_computes_with_the_stated_cpus_whatever_the_machine_offers(world, tmp_path):
    """Threads cut sums, so another number of them gives other last bits; 30 of 51 files of a small run differed."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        lake = Lake(tmp_path)
        spec = make_extract(world, (CLIP,), sites=[], outputs=["embeddings"], resources={"cpus": 1.0})
        assert lake.run(spec).exit_code == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
