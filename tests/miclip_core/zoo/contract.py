"""Sentences that every family must satisfy; a family's test module subclasses them with its own `subject` fixture.

A subject is a loaded model (tiny, float64 where the library allows), images for it, and the family's handwritten hooks
on the untouched library model. Two classes: `AnyModel` for all, `TransformerBlocks` for models with attention blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.gradients import activation_gradient
from miclip_core.zoo.inspect import describe_model
from miclip_core.zoo.load import find_family
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.random_weights import fill_random
from miclip_core.zoo.recipe import Built
from miclip_core.zoo.select import whole_site
from miclip_core.zoo.sitemap import Native
from miclip_core.zoo.start import CachedBlock, entrances
from miclip_core.zoo.suffix import Suffix
from schemas.errors import GeometryMismatch, NotInEval, UnknownSite
from schemas.models import ActKind, Geometry, ModelFacts, rows_per_image, site_width
from schemas.refs import Site

Forward = Callable[[nn.Module, Tensor], Tensor]
Handwritten = dict[str, Callable[[nn.Module, Tensor, Forward], Tensor]]
"""Site -> (library model, images, forward) -> the tensor, by hooks or arithmetic written without the engine."""

BY_HAND: dict[ActKind, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
}


def tiny_model(
    build: Callable[[], Built], dtype: torch.dtype = torch.float64, modules: Sequence[str] = ()
) -> VisionModel:
    """A VisionModel around a library model made by `build`, with random weights and its facts observed on meta."""
    with torch.device("meta"):
        described = build()
    facts = describe_model("tiny", described, find_family("tiny", described), "0" * 64, "1" * 64, None, {}, modules)
    built = build()
    fill_random(built.root, 0)
    built.root.to(dtype).eval().requires_grad_(False)
    text = None if built.text is None else built.text(torch.device("cpu"))
    return VisionModel(facts, find_family("tiny", built), built.root, text, torch.device("cpu"), dtype)


@dataclass
class Subject:
    """A model under test. tolerance: for equalities that hold exactly in real arithmetic."""

    model: VisionModel
    images: Tensor
    forward: Forward
    handwritten: Handwritten
    tolerance: float = 1e-9
    patch_site: str = "embed"
    image_ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image_ids = [f"{i:032x}" for i in range(len(self.images))]

    @property
    def output(self) -> str:
        """What every edit reaches: the embedding, or all last tokens of a tower that pools nothing."""
        last = f"resid_post.{self.model.facts.n_blocks - 1}"
        found = next(path for path in ("embedding", "lnf_out", last) if path in canonical(self.model.facts))
        return str(self.model.sites([found])[0])

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Equal up to the tolerance, relative to the size of b."""
        return bool((a.double() - b.double()).abs().max() <= self.tolerance * max(1.0, float(b.abs().max())))


def hooked(root: nn.Module, module: nn.Module, images: Tensor, forward: Forward) -> tuple[Tensor, Tensor]:
    """What a plain forward hook on a module sees, copied: (input, output)."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        given = given.clone() if isinstance(given, Tensor) else given
        seen.append((given, (output[0] if isinstance(output, tuple) else output).clone()))

    handle = module.register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        forward(root, images)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def hooked_output(path: str) -> Callable[[nn.Module, Tensor, Forward], Tensor]:
    """A handwritten hook on the output of a module path."""
    return lambda root, images, forward: hooked(root, root.get_submodule(path), images, forward)[1]


def hooked_input(path: str) -> Callable[[nn.Module, Tensor, Forward], Tensor]:
    """A handwritten hook on the input of a module path."""
    return lambda root, images, forward: hooked(root, root.get_submodule(path), images, forward)[0]


def count_hooks(root: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in root.modules())


def canonical(facts: ModelFacts) -> list[str]:
    return [site.path for site in facts.sites]


def natives(model: VisionModel) -> list[str]:
    return [path for path in canonical(model.facts) if isinstance(model.entry(path), Native)]


def _flops(forward: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], int]:
    """What a pass gives, and how many operations its convolutions and matrices took."""
    with FlopCounterMode(display=False) as counter:
        return forward(), counter.get_total_flops()


class AnyModel:
    """What holds for every family."""

    def test_every_declared_site_has_the_declared_shape(self, subject: Subject) -> None:
        model, batch = subject.model, len(subject.images)
        out = model.run(subject.images, canonical(model.facts))
        for site in model.facts.sites:
            key = str(model.sites([site.path])[0])
            shape = tuple(out[key].shape)
            expected = {
                "tokens": (batch, site.positions, *site.shape),
                "heads": (batch, site.shape[0] if site.shape else 0, site.positions, *site.shape[1:]),
                "map": (batch, *site.shape, *(site.grid or ())),
                "vector": (batch, *site.shape),
            }[site.layout]
            assert shape == expected, site.path

    def test_tapping_everything_leaves_the_embedding_as_it_was(self, subject: Subject) -> None:
        model = subject.model
        with torch.no_grad():
            plain = subject.forward(model.module, subject.images)
        out = model.run(subject.images, canonical(model.facts), stop="end")
        assert subject.close(out[subject.output], plain)

    def test_hooks_are_gone_after_a_pass_and_after_an_exception(self, subject: Subject) -> None:
        model = subject.model
        before = count_hooks(model.module)
        model.run(subject.images, canonical(model.facts))
        assert count_hooks(model.module) == before

        def fail(x: Tensor) -> Tensor:
            raise RuntimeError("inside a hook")

        site = next(path for path in natives(model) if path not in model.family.sums and model.entry(path).editable)
        with pytest.raises(RuntimeError, match="inside a hook"):
            model.run(subject.images, canonical(model.facts), [Edit(Site(path=site), "fn", fail)])
        assert count_hooks(model.module) == before

    def test_taps_equal_hooks_written_by_hand_on_the_library_model(self, subject: Subject) -> None:
        assert subject.handwritten, "a family needs at least one handwritten oracle"
        out = subject.model.run(subject.images, list(subject.handwritten))
        for path, by_hand in subject.handwritten.items():
            key = str(subject.model.sites([path])[0])
            expected = by_hand(subject.model.module, subject.images, subject.forward)
            assert out[key].shape == expected.shape, path
            assert subject.close(out[key], expected), path

    def test_permuting_the_images_permutes_every_tap(self, subject: Subject) -> None:
        model, order = subject.model, torch.arange(len(subject.images)).flip(0)
        plain = model.run(subject.images, canonical(model.facts))
        turned = model.run(subject.images[order], canonical(model.facts))
        for name in plain:
            assert subject.close(turned[name], plain[name][order]), name

    def test_stopping_at_the_last_tap_gives_what_the_whole_pass_gives(self, subject: Subject) -> None:
        model = subject.model
        for path in canonical(model.facts):
            key = str(model.sites([path])[0])
            early = model.run(subject.images, [path], stop="last_tap")[key]
            assert torch.equal(early, model.run(subject.images, [path], stop="end")[key]), path

    def test_an_early_tap_does_not_run_later_modules(self, subject: Subject) -> None:
        model, ran = subject.model, []
        paths = natives(model)
        last_module = model.family.visual
        handle = last_module.register_forward_hook(lambda *a: ran.append(1))
        model.run(subject.images, [paths[0]])
        handle.remove()
        assert not ran

    def test_setting_a_site_to_its_own_value_changes_nothing(self, subject: Subject) -> None:
        model = subject.model
        last = subject.output
        plain = model.run(subject.images, [last])
        for path in self.editable(model):
            value = model.run(subject.images, [path])[str(model.sites([path])[0])]
            again = model.run(subject.images, [last], [Edit(Site(path=path), "set", value)])
            assert subject.close(again[last], plain[last]), path

    def test_an_edited_tap_returns_the_edited_value_and_raw_the_original(self, subject: Subject) -> None:
        model = subject.model
        for path in self.editable(model)[:: max(1, len(self.editable(model)) // 8)]:
            key = str(model.sites([path])[0])
            plain = model.run(subject.images, [path])[key]
            out = model.run(subject.images, [path], [Edit(Site(path=path), "scale", 2.0)], raw=[path])
            assert subject.close(out[key], 2 * plain), path
            assert subject.close(out[f"{key}!raw"], plain), path

    def test_an_edit_reaches_the_output(self, subject: Subject) -> None:
        model, last = subject.model, subject.output
        plain = model.run(subject.images, [last])[last]
        for path in self.editable(model):
            site = model.facts.site(path)
            out = model.run(subject.images, [last], [Edit(Site(path=path), "scale", 0.5)])[last]
            moved = float((out - plain).abs().max())
            # Keys may be scaled without effect only where there is nothing to choose between.
            assert moved > 10 * subject.tolerance or site.width == 0, path

    def test_a_pass_from_any_entrance_is_the_end_of_the_whole_pass_to_the_bit(self, subject: Subject) -> None:
        """Every site from the entrance on, those derived from earlier ones aside; what lies before it computes nothing."""
        model, images, left = subject.model, subject.images, list[int]()
        whole, costs = _flops(lambda: model.run(images, canonical(model.facts)))
        for entrance in entrances(model.family):
            cached = CachedBlock(entrance, whole[str(whole_site(model.facts.site(entrance)))])
            kept = cached.value.clone()
            late = natives(model)[natives(model).index(entrance) :]
            found, cost = _flops(lambda: model.run(None, late, start=cached))  # noqa: B023
            assert all(torch.equal(value, whole[name]) for name, value in found.items()), entrance
            assert torch.equal(cached.value, kept), f"a pass from {entrance} wrote into what it was given"
            if not entrance.startswith("resid_mid"):  # what fused attention takes is not always counted
                left.append(cost)
        assert [costs, *left] == sorted({costs, *left}, reverse=True)  # each entrance saves more than the one before
        assert all("forward" not in vars(module) for module in model.module.modules())

    def test_an_edited_end_of_a_pass_is_that_of_the_whole_pass_to_the_bit(self, subject: Subject) -> None:
        model, last = subject.model, subject.output
        plain = model.run(subject.images, [last])[last]
        for path in self.editable(model):
            suffix = Suffix(model, path, [last.removesuffix("@all")])
            clean = suffix.begin(subject.images)[last]
            assert torch.equal(clean, plain)
            for edit in (Edit(Site(path=path), "scale", 0.5), Edit(Site(path=path), "add", 0.1, channels=[0])):
                whole = model.run(subject.images, [last], [edit])[last]
                assert torch.equal(suffix.edited([edit])[last], whole), path

    def test_an_edit_of_tokens_that_are_not_there_or_of_a_reduction_is_refused(self, subject: Subject) -> None:
        model = subject.model
        facts = next(site for site in map(model.facts.site, natives(model)) if site.selectors)
        absent = [name for name in ("reg", "cls", "map") if name not in facts.selectors]
        wrong = [f"{facts.path}@{name}" for name in absent] + [f"{facts.path}@{facts.selectors[0]}:mean"]
        for text in [*wrong, "embedding@all"]:
            with pytest.raises(UnknownSite):
                model.run(subject.images, [subject.output], [Edit(Site.parse(text), "set", 0.0)])

    def test_a_gradient_of_what_comes_too_late_is_refused(self, subject: Subject) -> None:
        first, last = natives(subject.model)[0], subject.output
        if first in ("pooled", last):
            pytest.skip("no named site comes before the pooled vector")
        with pytest.raises(UnknownSite, match=f"{re.escape(first)} does not depend on it"):
            activation_gradient(subject.model, subject.images, [last], torch.Tensor.sum, of=first)

    def test_gradients_equal_finite_differences(self, subject: Subject) -> None:
        model = subject.model
        if subject.images.dtype != torch.float64:
            pytest.skip("finite differences need float64")
        torch.manual_seed(0)
        last = subject.output
        direction = torch.randn(model.facts.site(last.removesuffix("@all")).width, dtype=torch.float64)

        def scalar(output: Tensor) -> Tensor:
            return (output @ direction).reshape(len(output), -1).sum(1)

        sites = self.differentiable(model)
        found = activation_gradient(model, subject.images, sites, scalar, of=last)
        for path in sites:
            key = str(model.sites([path])[0])
            probe, step = torch.randn_like(found[key].value), 1e-7  # small: a ReLU may sit near its kink
            moved = [
                scalar(model.run(subject.images, [last], [Edit(Site(path=path), "add", sign * step * probe)])[last])
                for sign in (1, -1)
            ]
            numeric = (moved[0] - moved[1]) / (2 * step)
            analytic = (found[key].gradient * probe).flatten(1).sum(1)
            assert torch.allclose(numeric, analytic, rtol=1e-4, atol=1e-6), path

    def test_one_bright_patch_changes_exactly_that_place(self, subject: Subject) -> None:
        model = subject.model
        site = model.facts.site(subject.patch_site)
        assert site.grid is not None
        rows, columns = site.grid
        height, width = model.facts.input_hw
        for row, column in {(0, 0), (rows - 1, 0), (rows // 2, columns - 1)}:
            changed = torch.zeros_like(subject.images[:1]).repeat(2, 1, 1, 1)
            top, left = row * height // rows, column * width // columns
            changed[1, :, top : top + height // rows, left : left + width // columns] = 3.0
            name = f"{subject.patch_site}@map"
            out = model.run(changed, [name])[name]
            difference = (out[1] - out[0]).abs().flatten(0, -3).sum(0)
            assert divmod(int(difference.argmax()), columns) == (row, column)

    def test_rows_and_widths_are_as_planned(self, subject: Subject) -> None:
        from miclip_core.zoo.select import as_rows

        model, planned = subject.model, []
        for facts in model.facts.sites:
            for tokens in facts.selectors or (None,):
                for ending in ("", ":mean", ":sample(2,7)"):
                    if ending and (tokens in (None, "cls")):
                        continue
                    text = facts.path + (f"@{tokens}" if tokens else "") + ending
                    try:
                        planned += [(facts, site) for site in model.sites([text])]
                    except UnknownSite:
                        assert "sample" in ending  # fewer than two positions
        out = model.run(subject.images, [site for _, site in planned], image_ids=subject.image_ids)
        for facts, site in planned:
            rows, positions = as_rows(facts, site, out[str(site)], subject.image_ids)
            width = site_width(model.facts, site)
            assert rows.shape == (len(subject.images), rows_per_image(model.facts, site), width), str(site)
            assert positions.shape[-1] == rows.shape[1]

    def test_training_mode_and_wrong_sizes_are_refused(self, subject: Subject) -> None:
        model = subject.model
        with pytest.raises(GeometryMismatch, match="expected"):
            model.run(subject.images[..., 1:], [subject.output])
        model.module.train()
        try:
            with pytest.raises(NotInEval):
                model.run(subject.images, [subject.output])
        finally:
            model.module.eval()

    def test_unknown_names_are_answered_with_what_exists(self, subject: Subject) -> None:
        name = subject.output.removesuffix("@all").split(".")[0]
        with pytest.raises(UnknownSite, match=f"did you mean {name}"):
            subject.model.sites([name[:-2] + name[-1]])

    def test_the_activation_function_is_what_the_facts_say(self, subject: Subject) -> None:
        module = self.activation_module(subject.model)
        if module is None:
            pytest.skip("the nonlinearity is no module of its own")
        x = torch.linspace(-4, 4, 33, dtype=torch.float64)
        by_hand = BY_HAND[subject.model.facts.act_kind]
        expected = torch.tensor([by_hand(float(value)) for value in x], dtype=torch.float64)
        assert torch.allclose(module(x.clone()), expected, rtol=0, atol=1e-9)

    def test_pixels_are_normalised_by_the_mean_and_spread_of_the_facts(self, subject: Subject) -> None:
        """That the facts are the library's is each family's own test."""
        facts: Geometry = subject.model.facts.geometry
        pixels = torch.randint(0, 256, (3, *facts.crop_hw), dtype=torch.uint8)
        x = subject.model.normalise(pixels).float().cpu()
        expected = (pixels / 255 - torch.tensor(facts.mean)[:, None, None]) / torch.tensor(facts.std)[:, None, None]
        assert torch.allclose(x, expected, atol=1e-6)

    # -- what a family may narrow

    def editable(self, model: VisionModel) -> list[str]:
        """Paths whose edits are exercised: all that accept one and come before the embedding."""
        names = ("q", "k", "v", "pattern", "z", "head_result")
        inner = [
            p
            for p in canonical(model.facts)
            if p.split(".")[0] in names and model.family.blocks and model.family.blocks[0].math
        ]
        return [path for path in natives(model) if model.entry(path).editable and path != "logits"] + inner

    def differentiable(self, model: VisionModel) -> list[str]:
        return self.editable(model)

    def activation_module(self, model: VisionModel) -> nn.Module | None:
        """The module that computes the MLP's nonlinearity, if there is one of its own."""
        return None


class LateAtRealSize:
    """Passes that start late at the size of a published model: all entrances, and edits of some sites."""

    @pytest.mark.slow
    def test_a_pass_from_any_entrance_is_the_end_of_the_whole_pass_to_the_bit(self, subject: Subject) -> None:
        AnyModel.test_a_pass_from_any_entrance_is_the_end_of_the_whole_pass_to_the_bit(self, subject)  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_an_edited_end_of_a_pass_is_that_of_the_whole_pass_to_the_bit(self, subject: Subject) -> None:
        AnyModel.test_an_edited_end_of_a_pass_is_that_of_the_whole_pass_to_the_bit(self, subject)  # type: ignore[arg-type]

    def editable(self, model: VisionModel) -> list[str]:
        """About eight; no block has 7 or 25 sites or a divisor of these, so all kinds have their turn."""
        paths = [path for path in natives(model) if model.entry(path).editable and path != "logits"]
        return paths[:: 7 if len(paths) < 80 else 25]


class TransformerBlocks:
    """The exact sums and weight identities of models with attention blocks."""

    def test_branches_add_up_to_the_residual(self, subject: Subject) -> None:
        for out in self.all_blocks(subject, "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
            assert subject.close(out["resid_pre"] + out["attn_out"], out["resid_mid"])
            assert subject.close(out["resid_mid"] + out["mlp_out"], out["resid_post"])

    def test_patterns_sum_to_one_and_mix_values_into_z(self, subject: Subject) -> None:
        out = self.run(subject, 0, "pattern", "v", "z")
        assert subject.close(out["pattern"].sum(-1), torch.ones_like(out["pattern"][..., 0]))
        assert subject.close(torch.einsum("bhqk,bhkx->bqhx", out["pattern"], out["v"]), out["z"])

    def test_head_results_and_the_bias_give_the_attention_output(self, subject: Subject) -> None:
        for layer, out in enumerate(self.all_blocks(subject, "head_result", "attn_out")):
            w = subject.model.weights(layer)
            assert subject.close((out["head_result"].sum(2) + w.b_O) * w.ls1, out["attn_out"])

    def test_neurons_and_the_output_matrix_give_the_mlp_output(self, subject: Subject) -> None:
        for layer, out in enumerate(self.all_blocks(subject, "mlp_act", "mlp_out")):
            w = subject.model.weights(layer)
            assert subject.close((out["mlp_act"] @ w.W_out.T + w.b_out) * w.ls2, out["mlp_out"])

    def test_norm_statistics_rebuild_the_norms(self, subject: Subject) -> None:
        layer = subject.model.facts.n_blocks - 1
        out = self.run(
            subject, layer, "resid_pre", "ln1_mean", "ln1_std", "ln1_out", "resid_mid", "ln2_mean", "ln2_std", "ln2_out"
        )
        w = subject.model.weights(layer)
        for x, name, norm in (("resid_pre", "ln1", w.ln1), ("resid_mid", "ln2", w.ln2)):
            scaled = (out[x] - out[f"{name}_mean"][..., None]) / out[f"{name}_std"][..., None]
            assert subject.close(scaled * norm.gamma + norm.beta, out[f"{name}_out"])

    def test_the_readout_rebuilds_the_embedding(self, subject: Subject) -> None:
        model, r = subject.model, subject.model.readout()
        if r.rho is None or r.norm is None:
            pytest.skip("attention pooling is no fixed row")
        out = model.run(subject.images, ["lnf_in", "lnf_mean", "lnf_std", "lnf_out", "embedding"])
        out = {name.split("@")[0]: value for name, value in out.items()}
        normed = (out["lnf_in"] - out["lnf_mean"][..., None]) / out["lnf_std"][..., None] * r.norm.gamma + r.norm.beta
        assert subject.close(normed, out["lnf_out"])
        pooled = normed if r.position == "after_pool" else torch.einsum("t,btd->bd", r.rho.to(normed), normed)
        projected = pooled if r.projection is None else pooled @ r.projection
        assert subject.close(projected if r.bias is None else projected + r.bias, out["embedding"])

    def test_the_effective_row_carries_values_to_the_pooled_vector(self, subject: Subject) -> None:
        """The attention output pooled with the readout weights equals the effective row mixed with the values."""
        model, r = subject.model, subject.model.readout()
        if "pattern_row.0" not in canonical(model.facts) or r.rho is None:
            pytest.skip("no effective row")
        layer = model.facts.n_blocks - 1
        taps = [f"{name}.{layer}" for name in ("pattern_row", "v", "z")] + ["lnf_std"]
        out = {key.split("@")[0]: value for key, value in model.run(subject.images, taps).items()}
        rho = r.rho.to(out[f"z.{layer}"])
        weight = rho / out["lnf_std"] if r.position == "before_pool" else rho.expand(len(subject.images), -1)
        pooled = torch.einsum("bt,bthx->bhx", weight / weight.sum(-1, keepdim=True), out[f"z.{layer}"])
        mixed = torch.einsum("bht,bhtx->bhx", out[f"pattern_row.{layer}"], out[f"v.{layer}"])
        assert subject.close(mixed, pooled)

    def test_weights_and_taps_agree_on_queries_keys_and_values(self, subject: Subject) -> None:
        """Taps are computed from these weights; that they are the library's, `handwritten` q, k, v and patterns say."""
        out, w = self.run(subject, 0, "ln1_out", "q", "k", "v"), subject.model.weights(0)
        if not self.plain_queries(subject.model):
            pytest.skip("queries and keys are normalised or rotated after the weights")
        for name, W, b in (("q", w.W_Q, w.b_Q), ("k", w.W_K, w.b_K), ("v", w.W_V, w.b_V)):
            expected = torch.einsum("btd,hxd->bhtx", out["ln1_out"], W) + b[:, None]
            assert subject.close(out[name], expected), name

    def test_one_row_computed_alone_equals_that_row_of_the_whole(self, subject: Subject) -> None:
        if not subject.model.facts.has_cls:
            pytest.skip("no class token")
        for name, pick in (
            ("pattern.0", lambda x: x[:, :, 0]),
            ("z.0", lambda x: x[:, 0]),
            ("head_result.0", lambda x: x[:, 0]),
        ):
            whole = subject.model.run(subject.images, [name])[f"{name}@all"]
            alone = subject.model.run(subject.images, [f"{name}@cls"])[f"{name}@cls"]
            assert alone.shape == pick(whole).shape and subject.close(alone, pick(whole)), name

    def test_starting_late_equals_the_whole_pass(self, subject: Subject) -> None:
        model = subject.model
        last = model.facts.n_blocks - 1
        wanted = [subject.output, f"resid_post.{last}@all", f"mlp_act.{last}@all"]
        whole = model.run(subject.images, wanted)
        for layer in range(model.facts.n_blocks):
            for name in ("resid_pre", "resid_mid"):
                cached = model.run(subject.images, [f"{name}.{layer}@all"])[f"{name}.{layer}@all"]
                late = model.run(None, wanted, start=CachedBlock(f"{name}.{layer}", cached))
                for key in wanted:
                    assert subject.close(late[key], whole[key]), (name, layer, key)
        assert "forward" not in vars(model.family.blocks[0].output.module)

    def test_a_start_after_the_tap_is_refused(self, subject: Subject) -> None:
        model = subject.model
        cached = model.run(subject.images, ["resid_pre.1@all"])["resid_pre.1@all"]
        with pytest.raises(UnknownSite, match="comes before the start"):
            model.run(None, ["mlp_act.0"], start=CachedBlock("resid_pre.1", cached))

    def test_a_start_of_another_shape_is_refused(self, subject: Subject) -> None:
        model = subject.model
        cached = model.run(subject.images, ["resid_pre.1@all"])["resid_pre.1@all"]
        for value in (cached[:, :1], cached[0], cached[..., 1:]):
            with pytest.raises(GeometryMismatch, match=r"resid_pre\.1@all of the same images"):
                model.run(None, [subject.output], start=CachedBlock("resid_pre.1", value))
        with pytest.raises(GeometryMismatch, match="expected"):
            model.run(subject.images, [subject.output], start=CachedBlock("resid_pre.1", cached[:1]))

    def test_raw_head_results_show_the_edit_of_what_heads_read(self, subject: Subject) -> None:
        model, edit, name = subject.model, Edit(Site(path="z.0"), "scale", 3.0), "head_result.0"
        plain, edited = (model.run(subject.images, [name], edits)[f"{name}@all"] for edits in ([], [edit]))
        raw = model.run(subject.images, [], [edit], raw=[name])[f"{name}@all!raw"]
        assert subject.close(raw, edited) and not subject.close(raw, plain)

    def test_zeroing_a_neuron_equals_removing_its_output_column(self, subject: Subject) -> None:
        model, last = subject.model, subject.output
        weight = model.weights(0).W_out
        edited = model.run(subject.images, [last], [Edit(Site(path="mlp_act.0"), "set", 0.0, channels=[1])])
        kept = weight[:, 1].clone()
        weight[:, 1] = 0
        try:
            removed = model.run(subject.images, [last])
        finally:
            weight[:, 1] = kept
        assert subject.close(edited[last], removed[last])

    def test_silencing_all_heads_leaves_the_bias(self, subject: Subject) -> None:
        w = subject.model.weights(0)
        out = subject.model.run(subject.images, ["attn_out.0@all"], [Edit(Site(path="z.0"), "set", 0.0)])
        assert subject.close(out["attn_out.0@all"], (w.b_O * w.ls1).expand_as(out["attn_out.0@all"]))

    def test_edits_apply_in_the_order_they_were_declared(self, subject: Subject) -> None:
        site = Site(path="resid_post.0")
        add, double = Edit(site, "add", 1.0), Edit(site, "scale", 2.0)
        plain = subject.model.run(subject.images, ["resid_post.0@all"])["resid_post.0@all"]
        for edits, expected in (([add, double], 2 * plain + 2), ([double, add], 2 * plain + 1)):
            out = subject.model.run(subject.images, ["resid_post.0@all"], edits)["resid_post.0@all"]
            assert subject.close(out, expected)

    # -- what a family may narrow

    def plain_queries(self, model: VisionModel) -> bool:
        """Whether q and k are exactly W x + b."""
        return True

    def run(self, subject: Subject, layer: int, *names: str) -> dict[str, Tensor]:
        """Whole tensors of one block by the first word of their site."""
        out = subject.model.run(subject.images, [f"{name}.{layer}@all" for name in names])
        return {key.split(".")[0]: value for key, value in out.items()}

    def all_blocks(self, subject: Subject, *names: str) -> list[dict[str, Tensor]]:
        """The same for every block, from one pass."""
        out = subject.model.run(subject.images, [f"{name}.*@all" for name in names])
        return [{name: out[f"{name}.{layer}@all"] for name in names} for layer in range(subject.model.facts.n_blocks)]
