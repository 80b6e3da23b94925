"""Written sites become canonical ones, and every wrong one is answered with what exists."""

from __future__ import annotations

import pytest

from schemas.errors import BadSite, UnknownSite
from schemas.models import Geometry, ModelFacts, SiteFacts, resolve_sites, rows_per_image, site_width
from schemas.refs import Site

GRID = (7, 7)


def tokens(path: str, width: int, cls: bool = True) -> SiteFacts:
    prefix = 1 if cls else 0
    selectors = ("all", "patch", "map", "cls") if cls else ("all", "patch", "map")
    return SiteFacts(
        path=path, layout="tokens", shape=(width,), positions=49 + prefix, prefix=prefix, grid=GRID, selectors=selectors
    )


def conv(path: str, channels: int) -> SiteFacts:
    return SiteFacts(path=path, layout="map", shape=(channels,), positions=49, grid=GRID, selectors=("map",))


def facts(*sites: SiteFacts) -> ModelFacts:
    geometry = Geometry(
        resize="squash",
        resize_hw=(224, 224),
        crop_hw=(224, 224),
        interpolation="bicubic",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return ModelFacts(
        model="ViT-B-32", family="clip_vit", weights_sha256="0", files_sha256="1", revision=None, library_versions={}, n_blocks=12, width=8,
        embed_dim=6, grid=GRID, input_hw=(224, 224), norm_eps=1e-5, act_kind="gelu", pool="tok",
        final_norm_position="before_pool", geometry=geometry, has_text=True, params=1, flops=1, sites=sites,
    )  # fmt: skip


VIT = facts(
    tokens("embed", 8),
    *(tokens(f"{name}.{layer}", width) for layer in range(12) for name, width in (("resid_post", 8), ("mlp_act", 32))),
    SiteFacts(path="embedding", layout="vector", shape=(6,), positions=1),
    tokens("module:visual.ln_post", 8),
)
CNN = facts(*(conv(f"conv.{s}.{b}.{n}", 4 * s) for s in (1, 2) for b in range(s + 1) for n in ("act1", "out")))
SIGLIP = facts(tokens("resid_post.0", 8, cls=False))


def resolved(model: ModelFacts, *texts: str) -> list[str]:
    return [str(site) for site in resolve_sites(model, texts)]


def test_negative_blocks_stars_and_default_tokens_become_absolute() -> None:
    assert resolved(VIT, "resid_post.-2@cls", "embed", "embedding") == ["resid_post.10@cls", "embed@all", "embedding"]
    assert resolved(VIT, "mlp_act.*@patch:mean") == [f"mlp_act.{layer}@patch:mean" for layer in range(12)]
    assert resolved(CNN, "conv.2.*.out:max") == ["conv.2.0.out@map:max", "conv.2.1.out@map:max", "conv.2.2.out@map:max"]
    assert resolved(CNN, "conv.-1.-1.act1") == ["conv.2.2.act1@map"]
    assert len(resolved(CNN, "conv.*.*.*")) == 10
    assert resolved(VIT, "module:visual.ln_post@cls") == ["module:visual.ln_post@cls"]


def test_a_model_sees_all_of_an_image_that_nothing_is_cut_off() -> None:
    cropping = VIT.model_copy(update={"geometry": VIT.geometry.model_copy(update={"resize_hw": (256, 256)})})
    assert VIT.sees_whole("model") and cropping.sees_whole("square") and not cropping.sees_whole("model")


def test_a_site_written_twice_is_kept_once_in_the_order_asked() -> None:
    assert resolved(VIT, "resid_post.3", "resid_post.-9@all", "mlp_act.3", "resid_post.3@cls") == [
        "resid_post.3@all",
        "mlp_act.3@all",
        "resid_post.3@cls",
    ]


def test_resolving_again_changes_nothing() -> None:
    once = resolve_sites(VIT, ["resid_post.*@patch:sample(4,1)", "embedding"])
    assert resolve_sites(VIT, once) == once


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (VIT, "resid_post.27", r"resid_post\.27: ViT-B-32 has blocks 0\.\.11"),
        (VIT, "resid_post.-13", r"blocks 0\.\.11 .*-1\.\.-12"),
        (VIT, "resid_post", r"writes this site resid_post\.0 to resid_post\.11"),
        (
            VIT,
            "resid_pots.1",
            "has no site resid_pots; it has embed, resid_post, mlp_act, embedding; did you mean resid_post",
        ),
        (VIT, "embed@reg", "has no reg here; embed takes @all, @patch, @map, @cls"),
        (VIT, "embedding@cls", "one vector per image"),
        (VIT, "embedding:mean", "leave the reduction away"),
        (VIT, "resid_post.0@cls:mean", "one position there"),
        (VIT, "resid_post.0@patch:sample(50,0)", "has 49 positions there; sample at most 49"),
        (VIT, "module:visual.conv1", "was not inspected"),
        (CNN, "conv.1.0.out@patch", "write @map"),
        (CNN, "conv.1.0.ot", "has act1, out after conv.1.0; did you mean out"),
        (CNN, "conv.3.0.out", r"has blocks 1\.\.2 at conv"),
        (SIGLIP, "resid_post.0@cls", "has no cls here"),
    ],
)
def test_every_wrong_site_is_answered_with_what_exists(model: ModelFacts, text: str, message: str) -> None:
    with pytest.raises(UnknownSite, match=message):
        resolve_sites(model, [text])


def test_a_site_that_does_not_parse_is_another_error() -> None:
    with pytest.raises(BadSite):
        resolve_sites(VIT, ["resid post"])


@pytest.mark.parametrize(
    ("text", "rows", "width"),
    [
        ("resid_post.0@cls", 1, 8),
        ("resid_post.0", 50, 8),
        ("mlp_act.0@patch", 49, 32),
        ("mlp_act.0@map", 49, 32),
        ("mlp_act.0@patch:mean", 1, 32),
        ("mlp_act.0@patch:sample(16,3)", 16, 32),
        ("embedding", 1, 6),
    ],
)
def test_rows_and_width_of_a_table(text: str, rows: int, width: int) -> None:
    (site,) = resolve_sites(VIT, [text])
    assert (rows_per_image(VIT, site), site_width(VIT, site)) == (rows, width)


def test_facts_survive_json() -> None:
    assert ModelFacts.model_validate_json(VIT.canonical_json()) == VIT
    assert Site.model_validate_json(resolve_sites(VIT, ["resid_post.0@patch:sample(4,1)"])[0].canonical_json())
