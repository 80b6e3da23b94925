"""Figures of quality against one-line formulas, and splices into a shipped model."""

from __future__ import annotations

import pytest
import torch

from miclip_core.sae.codes import Codes
from miclip_core.sae.evaluate import LossSums, Quality, constant, splice
from miclip_core.sae.sae import Sae
from miclip_core.world.evaluate import held_out, pixels_of
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadSae, BadSite, BadTokens
from schemas.refs import ModelRef
from schemas.sae import SaeConfig

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(60, 7, generator=DRAW, dtype=torch.float64) + 2
X_HAT = X + 0.3 * torch.randn(60, 7, generator=DRAW, dtype=torch.float64) + 0.1
F = torch.randn(60, 9, generator=DRAW, dtype=torch.float64).clamp(min=0) * (torch.arange(9) != 4)


def quality(rows: slice = slice(None)) -> Quality:
    found = Quality()
    found.add(X[rows], X_HAT[rows], Codes.from_dense(F[rows]))
    return found


def test_figures_are_those_of_their_formulas() -> None:
    q, e = quality(), X - X_HAT
    variance = (X - X.mean(0)).square().sum()
    assert q.fvu == pytest.approx(float(e.square().sum() / variance), rel=1e-12)
    assert q.fvu_centred == pytest.approx(float((e - e.mean(0)).square().sum() / variance), rel=1e-12)
    assert q.explained_variance == 1 - q.fvu
    assert q.cosine == pytest.approx(float(torch.cosine_similarity(X, X_HAT).mean()))
    assert q.l2_ratio == pytest.approx(float((X_HAT.norm(dim=1) / X.norm(dim=1)).mean()))
    assert q.relative_bias == pytest.approx(float(X_HAT.square().sum() / (X * X_HAT).sum()))
    assert q.l0 == pytest.approx(float((F > 0).sum() / 60))
    assert q.l1 == pytest.approx(float(F.sum() / 60))
    assert q.dead_fraction == pytest.approx(1 / 9)
    assert q.gamma == pytest.approx(float(X.mean(0).norm() / X.std(0, correction=0).norm()))


@pytest.mark.parametrize("cuts", [(1, 2), (20, 40), (0, 59)])
def test_any_partition_merges_to_the_same_figures(cuts: tuple[int, int]) -> None:
    one, two = cuts
    merged = quality(slice(two, None)).merge(quality(slice(0, one))).merge(quality(slice(one, two)))
    for name in ("fvu", "fvu_centred", "cosine", "l2_ratio", "relative_bias", "l0", "l1", "gamma"):
        assert getattr(merged, name) == pytest.approx(getattr(quality(), name), rel=1e-10), name
    assert torch.equal(merged.fired_U, quality().fired_U)


def test_identity_leaves_nothing_and_the_mean_leaves_all() -> None:
    codes = Codes.from_dense(F)
    same, mean = Quality(), Quality()
    same.add(X, X, codes)
    mean.add(X, X.mean(0).expand_as(X), codes)
    assert same.fvu == 0
    assert mean.fvu == pytest.approx(1, rel=1e-12)


def test_no_tokens_or_no_variance_give_an_error_and_no_figure() -> None:
    with pytest.raises(BadTokens, match="no token was measured"):
        _ = Quality().fvu
    alike = Quality()
    alike.add(torch.ones(5, 7), torch.ones(5, 7), Codes.from_dense(torch.ones(5, 9)))
    with pytest.raises(BadTokens, match="alike"):
        _ = alike.fvu


def test_losses_on_paper() -> None:
    """Two classes, logits (a, 0): the loss of class 0 is log(1 + exp(-a)). The third image has no label."""
    logits = {"original": [3.0, 3, 3], "spliced": [1.0, 1, 1], "zero": [-1.0, -1, -1], "mean": [3.0, 3, 3]}
    sums = LossSums()
    tensors = {name: torch.tensor([[a, 0.0] for a in values]) for name, values in logits.items()}
    embeddings = {"original": torch.eye(3), "spliced": torch.eye(3) * 2}
    sums.add(tensors, torch.tensor([0, 0, -1]), embeddings)
    loss = {name: float(torch.log1p(torch.exp(-torch.tensor(values[0])))) for name, values in logits.items()}
    assert sums.loss("spliced") == pytest.approx(loss["spliced"])
    expected = (loss["zero"] - loss["spliced"]) / (loss["zero"] - loss["original"])
    assert sums.recovered("zero") == pytest.approx(expected)
    assert sums.recovered("mean") is None
    assert sums.kl("original") == 0
    assert sums.embedding_cosine == pytest.approx(1)
    assert LossSums().recovered("zero") is None
    twice = sums.merge(sums)
    assert twice.loss("zero") == pytest.approx(loss["zero"])


# ---------------------------------------------------------------- in a model


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(ModelRef.parse("demo:clip-p8"))


SITE = "resid_post.-2@patch"


def random_sae(d: int, **config) -> Sae:
    draw = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=draw), dim=1)
    facts = SaeConfig(**{"arch": "topk", "d": d, "latents": 4 * d, "k": 8, **config})
    return Sae(facts, W, torch.zeros(4 * d), W, torch.zeros(d))


def test_a_splice_replaces_the_patches_and_leaves_the_class_token(model: VisionModel) -> None:
    pixels, sae = pixels_of(held_out(4)), random_sae(96)
    sites = ["resid_post.-2@all"]
    name = str(model.sites(sites)[0])
    before = model.run(pixels, sites)[name]
    after = model.run(pixels, sites, splice(model, SITE, sae))[name]
    assert torch.equal(after[:, 0], before[:, 0])
    expected = sae.reconstruct(before[:, 1:].reshape(-1, 96))[1].reshape(4, 64, 96)
    torch.testing.assert_close(after[:, 1:], expected)
    sampled = model.run(pixels, sites, splice(model, "resid_post.-2@patch:sample(4,0)", sae))[name]
    assert torch.equal(sampled, after)
    zero = model.run(pixels, sites, constant(model, SITE, 0.0))[name]
    assert float(zero[:, 1:].abs().max()) == 0
    table = model.run(pixels, sites, constant(model, SITE, torch.arange(96.0)))[name]
    assert torch.equal(table[:, 1:], torch.arange(96.0).expand(4, 64, 96))


@pytest.mark.parametrize("site", [SITE, "resid_post.1@cls", "mlp_act.1@patch"])
def test_with_its_error_kept_a_splice_changes_nothing(model: VisionModel, site: str) -> None:
    pixels = pixels_of(held_out(4))
    sae = random_sae(model.facts.site(model.sites([site])[0].path).width)
    original = model.embed_images(pixels)
    kept = model.run(pixels, ["embedding"], splice(model, site, sae, keep_error=True))["embedding"]
    torch.testing.assert_close(kept, original, rtol=1e-4, atol=1e-5)
    spliced = model.run(pixels, ["embedding"], splice(model, site, sae))["embedding"]
    assert float((spliced - original).norm()) > 0.01 * float(original.norm())


def test_sites_that_cannot_be_spliced_are_refused(model: VisionModel) -> None:
    with pytest.raises(BadSite, match="mean"):
        splice(model, "resid_post.1@patch:mean", random_sae(96))
    with pytest.raises(BadSite, match="names 5 sites"):
        splice(model, "resid_post.*@patch", random_sae(96))
    with pytest.raises(BadSae, match=r"encodes 50 channels, but resid_post\.3@patch has 96"):
        splice(model, SITE, random_sae(50))
    with pytest.raises(BadSae, match=r"trained at resid_post\.2@patch, not at resid_post\.3@patch"):
        splice(model, SITE, random_sae(96, site="resid_post.2@patch"))
