"""Steering against torch's own hooks in the library's pass from pixels, and against small sums by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from miclip_core.explain.answers import Answer, Generation, answer
from miclip_core.explain.question import Question, make_question
from miclip_core.explain.steer import (
    Injection,
    Steering,
    active_positions,
    blank_image,
    directions,
    inject,
    patch_positions,
)
from miclip_core.explain.vlm import Vlm, load_vlm
from schemas.errors import BadSae, BadSpec, BadUnits, EditNotRead, GeometryMismatch, NonFiniteActivation, UnknownSite
from schemas.models import Geometry
from tests.miclip_core.explain import vlms
from tests.miclip_core.explain.conftest import Speaker

GREEDY = Generation(max_new_tokens=6)
TOY: Any = SimpleNamespace(
    model="toy",
    n_prefix=1,
    grid=(2, 2),
    input_hw=(4, 4),
    geometry=Geometry(
        resize="squash", resize_hw=(4, 4), crop_hw=(4, 4), interpolation="bicubic", mean=(0.5, 0.25, 0.2), std=(0.5, 0.25, 0.1)
    ),
)  # fmt: skip
"""One class token and four patches."""


# ---------------------------------------------------------------- directions


def test_directions_of_features_are_their_rows_made_unit_long() -> None:
    decoder = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0], [5.0, 12.0]])
    expected = [[5 / 13, 12 / 13], [0.6, 0.8]]
    torch.testing.assert_close(directions(decoder, "sae", [3, 0]), torch.tensor(expected))
    torch.testing.assert_close(directions(decoder, "permuted", [1, 2]), torch.tensor(expected))  # 1 + 2, 2 + 2 - 4
    odd = directions(decoder[:3], "permuted", [0, 1, 2])  # three rows: one further
    assert torch.equal(odd, directions(decoder[:3], "sae", [1, 2, 0]))


def test_a_random_direction_belongs_to_its_seed_and_feature_alone() -> None:
    decoder = torch.zeros(5000, 64)
    one = directions(decoder, "random", [7, 8, 9], seed=1)
    assert torch.equal(directions(decoder[:10], "random", [9, 7], seed=1), one[[2, 0]])
    assert not torch.equal(directions(decoder, "random", [7], seed=2)[0], one[0])
    many = directions(decoder, "random", range(2000))
    torch.testing.assert_close(many.norm(dim=1), torch.ones(2000))
    assert many.mean(0).norm() < 5 / 2000**0.5 and float((many[:-1] * many[1:]).sum(1).abs().max()) < 0.7


def test_features_without_a_direction_are_refused() -> None:
    with pytest.raises(BadUnits, match=r"feature 4; this dictionary has 0\.\.3"):
        directions(torch.ones(4, 2), "sae", [0, 4])
    with pytest.raises(BadUnits, match="-1"):
        directions(torch.ones(4, 2), "random", [-1])
    for bad in (0.0, torch.nan, torch.inf):
        decoder = torch.ones(4, 2)
        decoder[2] = bad
        with pytest.raises(BadSae, match="feature 2"):
            directions(decoder, "sae", [1, 2])


# ---------------------------------------------------------------- injection


def test_the_class_token_shifts_active_patches_by_one() -> None:
    tokens = torch.arange(10.0).reshape(1, 5, 2)
    places = [active_positions(TOY, [0])]
    new, realised = inject(tokens, Injection(torch.tensor([[10.0, 0.0]]), places))
    expected = tokens.clone()
    expected[0, 1, 0] += 10
    assert torch.equal(new, expected) and realised.tolist() == [1.0]


def test_every_row_gets_its_own_vector_at_its_own_positions_and_nothing_else() -> None:
    tokens = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    vectors = torch.tensor([2.0, 3.0, 4.0]).diag_embed().new_zeros(3, 4)
    for row in range(3):
        vectors[row, row] = row + 2.0
    places = [torch.tensor([0, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([4])]
    new, realised = inject(tokens, Injection(vectors, places))
    changed = {(r, t, d) for r, t, d in (new != tokens).nonzero().tolist()}
    assert changed == {(0, 0, 0), (0, 3, 0), (2, 4, 2)}
    assert new[0, 0, 0] == tokens[0, 0, 0] + 2 and new[2, 4, 2] == tokens[2, 4, 2] + 4
    torch.testing.assert_close(realised, torch.ones(3))  # nothing asked of row 1 counts as done


def test_all_is_the_list_of_all_positions() -> None:
    tokens, vectors = torch.randn(2, 5, 3), torch.randn(2, 3)
    listed = [patch_positions(TOY, "all")] * 2
    assert listed[0].tolist() == [0, 1, 2, 3, 4]
    for op in ("add", "replace"):
        new, realised = inject(tokens, Injection(vectors, None, op))
        again, same = inject(tokens, Injection(vectors, listed, op))
        assert torch.equal(new, again) and torch.equal(realised, same)
    assert torch.equal(new, vectors[:, None].expand_as(tokens))


def test_nothing_is_changed_bit_for_bit_by_a_vector_of_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tokens = torch.randn(2, 5, 3).to(dtype)
        new, realised = inject(tokens, Injection(torch.zeros(2, 3)))
        assert torch.equal(new, tokens) and new.dtype == dtype and realised.tolist() == [1.0, 1.0]


def test_what_bf16_rounds_away_is_reported() -> None:
    """A number near 256 has neighbours 2 apart in bf16, so that adding 0.9 is lost and adding 8 is not."""
    tokens = torch.full((3, 5, 4), 256.0, dtype=torch.bfloat16)
    new, realised = inject(tokens, Injection(torch.tensor([[0.9] * 4, [8.0] * 4, [0.0, 0.0, 0.9, 8.0]])))
    assert torch.equal(new[0], tokens[0]) and new[1].float().unique().tolist() == [264.0]
    assert realised.tolist() == pytest.approx([0.0, 1.0, 8 / math.hypot(0.9, 8)])
    fine = inject(tokens.float(), Injection(torch.full((3, 4), 0.9)))[1]
    assert fine.tolist() == pytest.approx([1.0] * 3, abs=1e-4)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._held = 0, WeakValueDictionary[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in (found,) if isinstance(found, Tensor) else ():
            self._held[id(tensor)] = tensor
        sizes = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self._held.values()
        }
        self.most = max(self.most, sum(sizes.values()))
        return found


@pytest.mark.parametrize("op", ["add", "replace"])
def test_steering_takes_little_memory_beside_the_tokens(op: Any) -> None:
    tokens = torch.randn(16, 50, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    with Peak() as peak:
        inject(tokens, Injection(torch.ones(16, 40), op=op))
    assert 3 * tokens.nbytes < peak.most < 4 * tokens.nbytes  # a copy in fp32 is two of them, and the new tokens one


def test_the_sum_is_rounded_once() -> None:
    """256 + 1.5: in bf16 the vector is 1.5, the sum 257.5, whose nearest neighbours are 256 and 258."""
    tokens = torch.full((1, 5, 1), 256.0, dtype=torch.bfloat16)
    assert inject(tokens, Injection(torch.tensor([[1.5]])))[0].unique().tolist() == [258.0]
    assert inject(tokens, Injection(torch.tensor([[1.001]])))[0].unique().tolist() == [258.0]  # bf16(1.001) would be 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_tokens_that_are_no_numbers_after_the_injection_are_refused(bad: float) -> None:
    vectors = torch.zeros(3, 2)
    vectors[1, 0] = bad
    with pytest.raises(NonFiniteActivation, match=r"images \[1\]"):
        inject(torch.zeros(3, 5, 2), Injection(vectors))
    with pytest.raises(NonFiniteActivation, match=r"images \[0\]"):  # 65520 is infinite in fp16
        inject(torch.full((1, 5, 2), 65000.0, dtype=torch.float16), Injection(torch.full((1, 2), 600.0)))


def test_vectors_and_positions_must_fit_the_tokens() -> None:
    tokens = torch.zeros(2, 5, 3)
    with pytest.raises(GeometryMismatch, match=r"expected \[2, 3\]"):
        inject(tokens, Injection(torch.zeros(3, 3)))
    with pytest.raises(GeometryMismatch, match="1 lists of positions for 2 images"):
        inject(tokens, Injection(torch.zeros(2, 3), [torch.tensor([0])]))
    for place in (5, -1):
        with pytest.raises(GeometryMismatch, match=r"image 1 .* tokens 0\.\.4"):
            inject(tokens, Injection(torch.zeros(2, 3), [torch.tensor([0]), torch.tensor([place])]))


# ---------------------------------------------------------------- positions and blank images


def test_positions_are_counted_with_the_prefix_tokens() -> None:
    assert patch_positions(TOY, "patches").tolist() == [1, 2, 3, 4]
    assert patch_positions(TOY, "block:1").tolist() == [1]
    eight = SimpleNamespace(model="toy", n_prefix=1, grid=(8, 8))
    rows = [19, 20, 21, 27, 28, 29, 35, 36, 37]  # patch 18 is row 2, column 2; the class token is before it
    assert patch_positions(eight, "block:3").tolist() == rows
    wide = SimpleNamespace(model="toy", n_prefix=0, grid=(2, 6))
    assert patch_positions(wide, "block:2").tolist() == [2, 3, 8, 9]
    assert active_positions(eight, torch.tensor([0, 63])).tolist() == [1, 64]
    assert active_positions(eight, []).tolist() == []


def test_positions_that_are_not_there_are_refused() -> None:
    for which in ("block:3", "block:0", "block:", "centre", "block:x"):
        with pytest.raises(BadSpec, match="n from 1 to 2"):
            patch_positions(TOY, which)
    for patch in (4, -1):
        with pytest.raises(GeometryMismatch, match=r"toy has 0\.\.3"):
            active_positions(TOY, [0, patch])


def test_blank_images_by_hand() -> None:
    white, black = blank_image("white", TOY), blank_image("black", TOY)
    for image, values in ((white, (1.0, 3.0, 8.0)), (black, (-1.0, -1.0, -2.0))):
        torch.testing.assert_close(image, torch.tensor(values)[:, None, None].expand(3, 4, 4))
    assert torch.equal(blank_image("grey", TOY), torch.zeros(3, 4, 4))
    noise = blank_image("noise", TOY, seed=4)
    assert torch.equal(noise, blank_image("noise", TOY, seed=4)) and noise.dtype == torch.float32
    assert not torch.equal(noise, blank_image("noise", TOY, seed=5))
    large = SimpleNamespace(input_hw=(64, 64))
    assert abs(blank_image("noise", large).mean()) < 0.05 and abs(blank_image("noise", large).std() - 1) < 0.05


# ---------------------------------------------------------------- in the tower


def library_blocks(vlm: Vlm) -> Any:
    """The library's own list of blocks, found by its length."""
    found = [
        module
        for module in vlm.module.model.vision_tower.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == vlm.tower.facts.n_blocks
    ]
    assert len(found) == 1
    return found[0]


@contextmanager
def hooked(vlm: Vlm, block: int, vectors: Tensor, places: list[Tensor] | None) -> Iterator[list[int]]:
    """The library's pass with vectors added behind one block by a hook of torch that runs before all others."""
    fired = []

    def add(module: Any, args: Any, output: Any) -> Any:
        fired.append(block)
        tokens = output[0] if isinstance(output, tuple) else output
        delta = torch.zeros_like(tokens)
        for row in range(len(tokens)):
            delta[row, slice(None) if places is None else places[row]] = vectors[row]
        return (tokens + delta, *output[1:]) if isinstance(output, tuple) else tokens + delta

    handle = library_blocks(vlm)[block].register_forward_hook(add, prepend=True)
    try:
        yield fired
    finally:
        handle.remove()


def by_the_library(vlm: Vlm, question: Question, pixels: Tensor) -> list[str]:
    """Greedy answers by the library's own generate, from pixels."""
    ids = question.ids.expand(len(pixels) // question.images, -1)
    extras = {name: value.expand(len(ids), -1) for name, value in question.extras.items()}
    written = vlm.module.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **extras,
        max_new_tokens=GREEDY.max_new_tokens, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    return vlm.processor.tokenizer.batch_decode(written[:, len(question.ids) :], skip_special_tokens=True)


def steered(vlm: Vlm, block: int, question: Question, pixels: Tensor, injection: Injection) -> list[Answer]:
    steering = Steering(vlm, block)
    tokens, _ = inject(steering.prefix(pixels), injection)
    return answer(vlm, question, steering.finish(tokens), GREEDY)


def vectors_of(vlm: Vlm, count: int, alpha: float = 12.0) -> Tensor:
    width = vlm.tower.facts.width
    return alpha * directions(torch.zeros(99, width), "random", range(count))


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_steering_is_a_hook_in_the_librarys_whole_pass(speaker: Speaker, kind: vlms.Kind) -> None:
    vlm = speaker(kind)
    facts, question = vlm.tower.facts, make_question(vlm, "describe the image", 2)
    pixels = vlms.images(vlm, 6)
    plain = by_the_library(vlm, question, pixels)
    said = []
    for block in range(vlm.language.reads_block + 1):
        vectors = vectors_of(vlm, 6)
        some = [facts.n_prefix + torch.arange(row, row + 4) for row in range(6)]
        for places in (None, some):
            with hooked(vlm, block, vectors, places) as fired:
                expected = by_the_library(vlm, question, pixels)
            assert fired == [block]
            found = steered(vlm, block, question, pixels, Injection(vectors, places))
            assert [one.raw for one in found] == expected
            said.append(expected)
    assert any(texts != plain for texts in said)
    assert by_the_library(vlm, question, pixels) == plain  # nothing was left behind


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_without_a_vector_answers_are_the_librarys_before_and_after_steering(speaker: Speaker, kind: vlms.Kind) -> None:
    vlm = speaker(kind)
    question, pixels = make_question(vlm, "describe the image", 1), vlms.images(vlm, 4)
    plain, none = by_the_library(vlm, question, pixels), torch.zeros(4, vlm.tower.facts.width)
    for block in range(vlm.language.reads_block + 1):
        before = steered(vlm, block, question, pixels, Injection(none))
        assert [one.raw for one in before] == plain
        moved = steered(vlm, block, question, pixels, Injection(vectors_of(vlm, 4)))
        assert moved != before
        assert steered(vlm, block, question, pixels, Injection(none)) == before


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_what_the_next_block_gets_differs_by_the_vectors_at_their_positions_alone(
    speaker: Speaker, kind: vlms.Kind
) -> None:
    vlm = speaker(kind)
    n_prefix, width = vlm.tower.facts.n_prefix, vlm.tower.facts.width
    steering = Steering(vlm, 0)
    tokens = steering.prefix(vlms.images(vlm, 3))
    vectors = torch.zeros(3, width)
    for row in range(3):
        vectors[row, 5 * row] = 2.0 + row
    places = [n_prefix + torch.tensor([row, 7]) for row in range(3)]
    got = []
    handle = library_blocks(vlm)[1].register_forward_pre_hook(
        lambda module, args, kwargs: got.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        steering.finish(tokens)
        steering.finish(inject(tokens, Injection(vectors, places))[0])
    finally:
        handle.remove()
    difference = got[1] - got[0]
    expected = torch.zeros_like(difference)
    for row in range(3):
        expected[row, places[row], 5 * row] = 2.0 + row
    torch.testing.assert_close(difference, expected, atol=1e-6, rtol=0)
    assert bool(((difference != 0) == (expected != 0)).all())


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_soft_tokens_of_the_rest_of_the_tower_are_those_of_a_whole_pass(speaker: Speaker, kind: vlms.Kind) -> None:
    vlm = speaker(kind)
    pixels, vectors = vlms.images(vlm, 3), vectors_of(vlm, 3)
    for block in range(vlm.language.reads_block + 1):
        with hooked(vlm, block, vectors, None), torch.no_grad():
            whole = vlm.module.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        steering = Steering(vlm, block)
        found = steering.finish(inject(steering.prefix(pixels), Injection(vectors))[0])
        torch.testing.assert_close(found, torch.stack(list(whole)), atol=1e-5, rtol=1e-5)


def test_one_blank_prefix_serves_all_features(speaker: Speaker) -> None:
    vlm = speaker("llava")
    question, vectors = make_question(vlm, "describe the image", 1), vectors_of(vlm, 5)
    blank = blank_image("white", vlm.tower.facts)
    steering = Steering(vlm, 0)
    shared = steering.prefix(blank[None]).expand(5, -1, -1)
    found = answer(vlm, question, steering.finish(inject(shared, Injection(vectors))[0]), GREEDY)
    alone = [steered(vlm, 0, question, blank[None], Injection(vectors[i : i + 1]))[0] for i in range(5)]
    assert [replace(one, mean_logprob=0.0) for one in found] == [replace(one, mean_logprob=0.0) for one in alone]
    for one, other in zip(found, alone):
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
    order = [3, 1, 4, 0, 2]
    moved = answer(vlm, question, steering.finish(inject(shared, Injection(vectors[order]))[0]), GREEDY)
    assert [one.raw for one in moved] == [found[i].raw for i in order]
    assert len({one.raw for one in found}) > 2
    assert steering.prefix(blank[None]).equal(shared[:1])


def test_a_block_behind_the_one_that_is_read_is_refused_because_a_hook_there_does_nothing(speaker: Speaker) -> None:
    vlm = speaker("llava")
    question, pixels = make_question(vlm, "describe the image", 1), vlms.images(vlm, 3)
    with hooked(vlm, 2, vectors_of(vlm, 3, alpha=1e4), None) as fired:
        assert by_the_library(vlm, question, pixels) == by_the_library(vlm, question, pixels)
        silent = by_the_library(vlm, question, pixels)
    assert len(fired) == 3 and silent == by_the_library(vlm, question, pixels)
    with pytest.raises(EditNotRead, match=r"resid_post\.2: .* reads resid_post\.1.*take block 1 or earlier"):
        Steering(vlm, 2)
    with pytest.raises(UnknownSite):
        Steering(vlm, 3)


def test_a_model_in_bf16_is_steered_in_bf16(tmp_path: Path) -> None:
    vlm = load_vlm(vlms.save("llava", tmp_path), dtype=torch.bfloat16)
    steering = Steering(vlm, 0)
    tokens = steering.prefix(vlms.images(vlm, 2))
    new, realised = inject(tokens, Injection(vectors_of(vlm, 2)))
    soft = steering.finish(new)
    assert tokens.dtype == new.dtype == soft.dtype == torch.bfloat16
    assert realised.tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    found = answer(vlm, make_question(vlm, "describe the image", 1), soft, GREEDY)
    assert len(found) == 2 and all(math.isfinite(one.mean_logprob) for one in found)
