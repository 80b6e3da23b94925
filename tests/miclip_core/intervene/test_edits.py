"""Edits of units image by image, against loops and dense formulas written by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from miclip_core.intervene.edits import Features, Neurons, UnitKind, check_units, make_edits
from miclip_core.sae.codes import Codes
from miclip_core.sae.sae import Sae
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadSae, BadSite, BadUnits
from schemas.intervene import Change
from schemas.refs import ModelRef
from schemas.sae import SaeConfig

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
UNITS = torch.tensor([[4, 0], [7, -1], [-1, -1]])
DOUBLE, REMOVE, PLUS = Change(beta=2.0), Change(beta=0.0), Change(op="add", beta=0.7)
NOTHING = [Change(beta=1.0), Change(op="add", beta=0.0)]
MODELS: dict[str, VisionModel] = {}


def get_model(name: str) -> VisionModel:
    if name not in MODELS:
        MODELS[name] = load_model(ModelRef.parse(f"demo:{name}"))
    return MODELS[name]


def make_sae(d: int, arch: str = "topk", latents: int = 40, site: str | None = None, **config) -> Sae:
    draw = torch.Generator().manual_seed(1)
    W_enc, W_dec = (torch.randn(latents, d, generator=draw) for _ in range(2))
    b_enc, b_dec = torch.randn(latents, generator=draw), torch.randn(d, generator=draw)
    facts = SaeConfig(**{"arch": arch, "d": d, "latents": latents, "k": 8, "site": site, **config})
    if arch == "gated":
        gate = {name: torch.randn(latents, generator=draw) for name in ("b_gate", "b_mag", "r_mag")}
        return Sae(facts, W_enc, torch.zeros(latents), W_dec, b_dec, gate=gate)
    return Sae(facts, W_enc, b_enc, W_dec, b_dec, threshold=None if arch == "topk" else torch.rand(latents))


# ---------------------------------------------------------------- neurons


@pytest.mark.parametrize("change", [DOUBLE, REMOVE, PLUS])
@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("clip-p8", "resid_post.2@all"), ("clip-p8", "resid_post.2@cls"), ("vit-dense", "mlp_act.1@patch"),
        ("clip-p8", "embedding"), ("resnet-sup", "stage.3"), ("clip-rn", "conv.4.0.out"),
    ],
)  # fmt: skip
def test_neurons_change_at_the_selected_positions_of_the_images_that_name_them(
    name: str, site: str, change: Change
) -> None:
    model = get_model(name)
    known = model.sites([site])[0]
    tap = str(model.sites([known.path + ("@all" if "@" in site else "")])[0])
    before = model.run(IMAGES, [tap])[tap]
    expected = before.clone()
    for image, unit in ((0, 4), (0, 0), (1, 7)):
        if before.ndim == 3:  # tokens [B, T, D]
            tokens = {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}[known.tokens or "all"]
            place = (image, tokens, unit)
        else:  # a map [B, C, h, w] or a vector [B, C]
            place = (image, unit)
        expected[place] = expected[place] * change.beta if change.op == "scale" else expected[place] + change.beta
    after = model.run(IMAGES, [tap], make_edits(model, site, Neurons(), UNITS, change))[tap]
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


def test_removing_twice_is_removing_once_and_effects_of_disjoint_sets_add() -> None:
    x = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0))
    kind, other = Neurons(), torch.tensor([[1, 2], [3, 8], [0, -1]])
    once = kind.hold(x).edited(UNITS, REMOVE)
    assert torch.equal(kind.hold(once).edited(UNITS, REMOVE), once)
    both = kind.hold(x).edited(torch.cat([UNITS, other], 1), DOUBLE)
    apart = (kind.hold(x).edited(units, DOUBLE) - x for units in (UNITS, other))
    torch.testing.assert_close(both - x, sum(apart))


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("error", ["keep", "drop"])
@pytest.mark.parametrize(
    "config",
    [
        {"arch": "topk"}, {"arch": "topk", "input_norm": "layer_norm"}, {"arch": "topk", "input_norm": "constant_norm"},
        {"arch": "relu"}, {"arch": "jumprelu"}, {"arch": "gated"},
    ],
    ids=lambda config: "-".join(config.values()),
)  # fmt: skip
@pytest.mark.parametrize("change", [DOUBLE, REMOVE, PLUS])
def test_features_change_as_dense_codes_that_are_decoded_say(change: Change, config: dict, error: str) -> None:
    """f is written out, edited, and decoded by the SAE; `keep` adds the error x - decode(f) again."""
    x_BRW = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2)) + 0.3
    sae = make_sae(12, **config)
    x_ND = x_BRW.flatten(0, 1)
    f_BRU = sae.encode(x_ND).dense().unflatten(0, (3, 5))
    changed = f_BRU.clone()
    for image, unit in ((0, 4), (0, 0), (1, 7)):
        u = f_BRU[image, :, unit]
        changed[image, :, unit] = u * change.beta if change.op == "scale" else u + change.beta
    plain, new = (sae.decode(Codes.from_dense(f.flatten(0, 1)), x_ND) for f in (f_BRU, changed))
    expected = new + (x_ND - plain) if error == "keep" else new
    held = Features(sae, error).hold(x_BRW)  # type: ignore[arg-type]
    torch.testing.assert_close(held.edited(UNITS, change).flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(held.reference_BRW.flatten(0, 1), x_ND if error == "keep" else plain)


def test_adding_switches_features_on_that_are_off() -> None:
    x_BRW = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(3))
    sae = make_sae(12)
    off = next(u for u in range(40) if int(sae.encode(x_BRW.flatten(0, 1)).fired()[u]) == 0)
    units_BK = torch.tensor([[off], [-1]])
    held = Features(sae).hold(x_BRW)
    moved = held.edited(units_BK, PLUS) - x_BRW
    torch.testing.assert_close(moved[0], (0.7 * sae.W_dec[off]).expand(4, -1))
    assert not moved[1].any()
    assert torch.equal(held.edited(units_BK, DOUBLE), x_BRW)


def test_features_change_in_a_forward_pass_at_the_tokens_of_the_site() -> None:
    model, sae = get_model("clip-p8"), make_sae(96)
    tap = "resid_post.3@all"
    before = model.run(IMAGES, [tap])[tap]
    after = model.run(IMAGES, [tap], make_edits(model, "resid_post.3@patch", Features(sae), UNITS, REMOVE))[tap]
    assert torch.equal(after[:, 0], before[:, 0]) and torch.equal(after[2], before[2])
    f_PU = sae.encode(before[0, 1:]).dense()
    expected = before[0, 1:] - f_PU[:, [4]] * sae.W_dec[4] - f_PU[:, [0]] * sae.W_dec[0]
    torch.testing.assert_close(after[0, 1:], expected)


# ---------------------------------------------------------------- nothing changed, and refusals


@pytest.mark.parametrize(("name", "site"), [("clip-p8", "resid_post.3@patch"), ("resnet-sup", "stage.2")])
def test_what_changes_nothing_leaves_the_pass_bit_for_bit(name: str, site: str) -> None:
    model = get_model(name)
    sae = make_sae(model.facts.site(model.sites([site])[0].path).width)
    plain = model.run(IMAGES, ["embedding"])["embedding"]
    empty = torch.full((3, 2), -1)
    for kind in (Neurons(), Features(sae)):
        changes = [(UNITS, NOTHING[0]), (UNITS, NOTHING[1]), (empty, DOUBLE), (UNITS[:, :0], REMOVE)]
        for units_BK, change in changes:
            edits = make_edits(model, site, kind, units_BK, change)
            assert torch.equal(model.run(IMAGES, ["embedding"], edits)["embedding"], plain)
        x_BRW = torch.randn(3, 5, sae.config.d)
        for units_BK, change in changes:  # in the arithmetic as well, without the short cut
            assert torch.equal(kind.hold(x_BRW).edited(units_BK, change), x_BRW)
    dropped = make_edits(model, site, Features(sae, "drop"), UNITS, NOTHING[0])
    assert not torch.equal(model.run(IMAGES, ["embedding"], dropped)["embedding"], plain)


@pytest.mark.parametrize(
    ("units", "text"),
    [
        ([[0, 96]], "list 0 names unit 96; there are units 0..95"), ([[0, 1], [-2, 1]], "list 1 names unit -2"),
        ([[5, 3], [3, 3]], "list 1 names unit 3 twice"), ([0, 1], r"shape \(2,\)"), ([[0.0]], "float32"),
    ],
)  # fmt: skip
def test_lists_that_name_no_unit_or_one_twice_are_refused(units: list, text: str) -> None:
    with pytest.raises(BadUnits, match=text):
        check_units(torch.tensor(units), 96)


def units_of(*numbers: int) -> Tensor:
    return torch.tensor([numbers])


@pytest.mark.parametrize(
    ("kind", "site", "error"),
    [
        (Neurons(), "resid_post.3@patch:mean", BadSite), (Neurons(), "resid_post.*@patch", BadSite),
        (Features(make_sae(95)), "resid_post.3@patch", BadSae),
        (Features(make_sae(96, site="resid_post.2@patch")), "resid_post.3@patch", BadSae),
        (Features(make_sae(96, latents=5)), "resid_post.3@patch", BadUnits),
    ],
)  # fmt: skip
def test_sites_and_saes_that_do_not_fit_are_refused(kind: UnitKind, site: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        make_edits(get_model("clip-p8"), site, kind, units_of(5), DOUBLE)


def test_a_change_by_no_number_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Change(beta=float("nan"))
