"""The grammars of model refs, image set refs and sites."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import BadRef, BadSite
from schemas.refs import IMAGE_SOURCES, TOKENS, ImageSetRef, ModelRef, Sample, Site, slug


@pytest.mark.parametrize(
    ("text", "source", "name", "revision", "location"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip", "ViT-B-32/laion2b_s34b_b79k", None, None),
        ("hf:facebook/dinov2-base@abc123", "hf", "facebook/dinov2-base", "abc123", None),
        ("hf:facebook/dinov2-base@v1.0", "hf", "facebook/dinov2-base", "v1.0", None),
        ("timm:resnet50.a1_in1k", "timm", "resnet50.a1_in1k", None, None),
        ("demo:clip-p8", "demo", "clip-p8", None, None),
        ("open_clip:ViT-B-32@file:/models/my clip", None, None, None, None),
        ("open_clip:ViT-B-32@file:/models/clip.safetensors", "open_clip", "ViT-B-32", None, "file:/models/clip.safetensors"),
        ("hf:org/model@s3://bucket/dir", "hf", "org/model", None, "s3://bucket/dir"),
        ("open_clip:ViT-B-32/random(7)", "open_clip", "ViT-B-32/random(7)", None, None),
    ],
)  # fmt: skip
def test_model_refs(text: str, source: str | None, name: str, revision: str | None, location: str | None) -> None:
    if source is None:
        with pytest.raises(BadRef):
            ModelRef.parse(text)
        return
    ref = ModelRef.parse(text)
    assert (ref.source, ref.name, ref.revision, ref.location) == (source, name, revision, location)
    assert str(ref) == text and ModelRef.parse(str(ref)) == ref


def test_random_weights_have_a_seed_and_a_base_name() -> None:
    ref = ModelRef.parse("hf:facebook/dinov2-base/random(12)")
    assert (ref.random_seed, ref.base_name) == (12, "facebook/dinov2-base")
    assert ModelRef.parse("demo:clip-p8").random_seed is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clip",
        "vit:x",
        "hf:",
        "hf:../../etc/passwd",
        "demo:/abs",
        "demo:a b",
        "hf:a@",
        "hf:a\0b",
        "hf:a@../b",
        "demo:clip\n",
    ],
)
def test_what_is_no_model_ref_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadRef, match=r"expected source:name|is not one of"):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    ("text", "path", "tokens", "reduce"),
    [
        ("resid_post.7@cls", "resid_post.7", "cls", None),
        ("resid_post.-2", "resid_post.-2", None, None),
        ("mlp_act.*@patch:mean", "mlp_act.*", "patch", "mean"),
        ("conv.3.1.out:max", "conv.3.1.out", None, "max"),
        ("resid_post.-2@patch:sample(16,0)", "resid_post.-2", "patch", Sample(n=16, seed=0)),
        ("embedding", "embedding", None, None),
        ("module:visual.transformer.resblocks.3@all", "module:visual.transformer.resblocks.3", "all", None),
    ],
)
def test_sites(text: str, path: str, tokens: str | None, reduce: object) -> None:
    site = Site.parse(text)
    assert (site.path, site.tokens, site.reduce) == (path, tokens, reduce)
    assert str(site) == text


@pytest.mark.parametrize(
    "text",
    ["", "resid_post.7@", "resid_post.7@head", "resid_post.7:median", "Resid.7", "a..b", "a.1:sample(0,1)", "a.1:sample(3)", "a b", "module:", "a.7@cls@patch"],
)  # fmt: skip
def test_what_is_no_site_is_refused(text: str) -> None:
    with pytest.raises(BadSite, match=r"^site "):
        Site.parse(text)


SITES = st.builds(
    lambda name, indices, tokens, reduce: ".".join([name, *indices]) + tokens + reduce,
    st.sampled_from(["resid_post", "conv", "q", "stage"]),
    st.lists(st.sampled_from(["0", "-1", "12", "*", "out"]), max_size=3),
    st.sampled_from(["", *(f"@{t}" for t in TOKENS)]),
    st.sampled_from(["", ":mean", ":max", ":sample(4,9)"]),
)


@settings(max_examples=100, deadline=None)
@given(SITES)
def test_a_site_is_written_as_it_was_read(text: str) -> None:
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize("source", IMAGE_SOURCES)
def test_image_set_refs(source: str) -> None:
    ref = ImageSetRef.parse(f"{source}:s3://bucket/a:b c")
    assert (ref.source, ref.location, str(ref)) == (source, "s3://bucket/a:b c", f"{source}:s3://bucket/a:b c")


@pytest.mark.parametrize("text", ["", "/data", "folder:", "zip:/a", "folder"])
def test_what_is_no_image_set_is_refused(text: str) -> None:
    with pytest.raises(BadRef, match="expected source:location"):
        ImageSetRef.parse(text)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_a_slug_is_always_a_safe_key(text: str) -> None:
    made = slug(text)
    assert made and not made.startswith(".") and set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert len(made) <= 80
