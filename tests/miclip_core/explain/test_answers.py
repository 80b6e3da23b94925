"""Answers against the library's own decoding from pixels, and against a slow loop of whole forward passes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from miclip_core.explain.answers import Answer, Generation, answer, answer_texts
from miclip_core.explain.language import soft_tokens
from miclip_core.explain.question import Question, make_question
from miclip_core.explain.vlm import Vlm
from schemas.errors import BadPrompt, NonFiniteActivation
from tests.miclip_core.explain import vlms
from tests.miclip_core.explain.conftest import Speaker

GREEDY = Generation(max_new_tokens=6)
SAMPLED = Generation(max_new_tokens=6, sample=True, temperature=1.5, top_k=8, seed=3)


def soft(vlm: Vlm, images: Tensor) -> Tensor:
    site = f"{vlm.language.reads}@all"
    return soft_tokens(vlm, vlm.tower.run(images, [site])[site])


def repeated(question: Question, count: int) -> dict[str, Tensor]:
    """A question put `count` times, as the library's arguments."""
    ids = question.ids.expand(count, -1)
    extras = {name: value.expand(count, -1) for name, value in question.extras.items()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extras}


def close(a: list[Answer], b: list[Answer]) -> bool:
    """The same tokens, and log-probabilities as far as fp32 goes."""
    same = [replace(x, mean_logprob=0.0) for x in a] == [replace(x, mean_logprob=0.0) for x in b]
    return same and all(math.isclose(x.mean_logprob, y.mean_logprob, abs_tol=1e-4) for x, y in zip(a, b))


@pytest.mark.parametrize("kind", vlms.KINDS)
@pytest.mark.parametrize("images", [1, 3])
def test_greedy_answers_are_the_librarys_from_pixels(speaker: Speaker, kind: vlms.Kind, images: int) -> None:
    vlm = speaker(kind)
    pixels, question = vlms.images(vlm, 4 * images), make_question(vlm, "describe the image", images)
    written = vlm.module.generate(
        **repeated(question, 4), pixel_values=pixels, max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    expected = vlm.processor.tokenizer.batch_decode(written[:, len(question.ids) :], skip_special_tokens=True)
    found = answer(vlm, question, soft(vlm, pixels), GREEDY)
    assert [one.raw for one in found] == expected and len(set(expected)) > 1


def by_whole_passes(vlm: Vlm, question: Question, pixels: Tensor, length: int) -> tuple[list[int], float]:
    """The likeliest next token again and again, each by a forward pass over everything so far, and its mean log-probability."""
    ids, logprobs, extras = question.ids[None], [], {k: v[None] for k, v in question.extras.items()}
    with torch.no_grad():
        for _ in range(length):
            more: dict[str, Any] = dict(extras)
            if "token_type_ids" in more:
                more["token_type_ids"] = torch.nn.functional.pad(
                    more["token_type_ids"], (0, ids.shape[1] - len(question.ids))
                )
            logits = vlm.module(input_ids=ids, pixel_values=pixels, use_cache=False, **more).logits[0, -1].double()
            token = int(logits.argmax())
            logprobs.append(float(logits[token] - logits.logsumexp(0)))
            ids = torch.cat((ids, torch.tensor([[token]])), 1)
            if token == 2:
                break
    return ids[0, len(question.ids) :].tolist(), sum(logprobs) / len(logprobs)


@pytest.mark.parametrize("kind", vlms.KINDS)
def test_the_mean_log_probability_is_that_of_whole_forward_passes(speaker: Speaker, kind: vlms.Kind) -> None:
    vlm = speaker(kind)
    pixels, question = vlms.images(vlm, 3), make_question(vlm, "describe the image", 1)
    for row, found in enumerate(answer(vlm, question, soft(vlm, pixels), GREEDY)):
        ids, mean = by_whole_passes(vlm, question, pixels[row : row + 1], 6)
        assert found.raw == vlm.processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert found.mean_logprob == pytest.approx(mean, abs=1e-4) and found.n_tokens == len(ids)


def ending_with(vlm: Vlm, token: int) -> Any:
    """The settings of a checkpoint in which this token ends a text, with everything else set to disturb."""
    settings = type(vlm.module.generation_config)(
        eos_token_id=[2, token], pad_token_id=0, repetition_penalty=5.0, do_sample=True, temperature=9.0, num_beams=3
    )
    return settings


def test_rows_end_on_their_own_and_the_checkpoints_other_settings_are_not_used(speaker: Speaker) -> None:
    vlm = speaker("llava")
    pixels, question = vlms.images(vlm, 6), make_question(vlm, "describe the image", 1)
    seen = soft(vlm, pixels)
    words = vlms.vocabulary("llava")
    whole = [one.raw.split() for one in answer(vlm, question, seen, GREEDY)]
    end = whole[0][0]
    assert any(end not in row for row in whole) and any(end in row for row in whole)
    own, vlm.module.generation_config = vlm.module.generation_config, ending_with(vlm, words[end])
    try:
        settings = vlm.module.generation_config
        found = answer(vlm, question, seen, GREEDY)
        assert vlm.module.generation_config is settings
        alone = [answer(vlm, question, seen[i : i + 1], GREEDY)[0] for i in range(6)]
    finally:
        vlm.module.generation_config = own
    for row, one in zip(whole, found, strict=True):
        expected = row[: row.index(end) + 1] if end in row else row
        assert one.raw.split() == expected and one.ended == (end in row)
    assert close(found, alone) and {one.ended for one in found} == {True, False}


@pytest.mark.parametrize("generation", [GREEDY, SAMPLED])
@pytest.mark.parametrize("images", [1, 2])
def test_a_batch_is_one_by_one_and_its_order_does_not_matter(
    speaker: Speaker, generation: Generation, images: int
) -> None:
    vlm = speaker("llava")
    question = make_question(vlm, "describe the image", images)
    seen = soft(vlm, vlms.images(vlm, 6 * images)).unflatten(0, (6, images))
    seeds = [11, 12, 13, 14, 15, 16]
    found = answer(vlm, question, seen.flatten(0, 1), generation, seeds)
    alone = [answer(vlm, question, seen[i], generation, seeds[i : i + 1])[0] for i in range(6)]
    assert close(found, alone) and len({one.raw for one in found}) > 2
    order = [4, 0, 5, 2, 2, 1]
    moved = answer(vlm, question, seen[order].flatten(0, 1), generation, [seeds[i] for i in order])
    assert close(moved, [found[i] for i in order])


def test_what_is_drawn_depends_on_both_seeds(speaker: Speaker) -> None:
    vlm = speaker("llava")
    question = make_question(vlm, "describe the image", 0)
    texts = [one.raw for one in answer(vlm, question, None, SAMPLED, [1, 2, 3, 1])]
    assert texts[0] == texts[3] and len(set(texts)) == 3
    other = replace(SAMPLED, seed=4)
    assert answer(vlm, question, None, other, [1])[0].raw != texts[0]
    assert answer(vlm, question, None, SAMPLED)[0].raw == answer(vlm, question, None, SAMPLED, [0])[0].raw


def test_tokens_are_drawn_as_often_as_temperature_top_k_and_top_p_say(speaker: Speaker) -> None:
    vlm = speaker("llava")
    question = make_question(vlm, "describe the image", 0)
    with torch.no_grad():
        logits = vlm.module(input_ids=question.ids[None]).logits[0, -1].double()
    p = (logits / 5).softmax(0)
    best = p.argsort(descending=True)[:8].tolist()
    p8 = {i: float(p[i] / p[best].sum()) for i in best}
    kept, total = [], 0.0
    for i in best:  # the fewest that hold 80 %
        kept.append(i)
        total += p8[i]
        if total >= 0.8:
            break
    assert 2 < len(kept) < 8
    drawn = Generation(max_new_tokens=1, sample=True, temperature=5.0, top_k=8, top_p=0.8)
    found = answer(vlm, question, None, drawn, range(2000))
    names = {i: vlm.processor.tokenizer.decode([i], skip_special_tokens=True) for i in kept}
    counts, wanted = Counter(one.raw for one in found), Counter[str]()
    for i in kept:
        wanted[names[i]] += p8[i] / total  # special tokens all read as nothing
    assert set(counts) == set(wanted)
    for name, share in wanted.items():
        assert abs(counts[name] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5
    logprobs = {name: [float(logits[i] - logits.logsumexp(0)) for i in kept if names[i] == name] for name in wanted}
    assert all(any(math.isclose(one.mean_logprob, p, abs_tol=1e-4) for p in logprobs[one.raw]) for one in found)


def test_other_numbers_of_images_or_seeds_than_the_question_shows_are_refused(speaker: Speaker) -> None:
    vlm = speaker("llava")
    seen = soft(vlm, vlms.images(vlm, 3))
    two, none = make_question(vlm, "describe", 2), make_question(vlm, "describe", 0)
    for question, given in ((two, seen), (two, None), (none, seen), (two, seen[:0])):
        with pytest.raises(BadPrompt, match="images"):
            answer(vlm, question, given, GREEDY)
    with pytest.raises(BadPrompt, match="3 seeds for 1 answers"):
        answer(vlm, two, seen[:2], GREEDY, [1, 2, 3])


def test_scores_that_are_no_numbers_are_refused(speaker: Speaker) -> None:
    vlm = speaker("llava")
    seen = soft(vlm, vlms.images(vlm, 2))
    seen[1] = torch.nan
    with pytest.raises(NonFiniteActivation, match=r"scores .* answers \[1\] .* token 0"):
        answer(vlm, make_question(vlm, "describe", 1), seen, GREEDY)


def test_questions_of_one_length_are_answered_together_as_alone(speaker: Speaker) -> None:
    for kind in vlms.KINDS:
        vlm = speaker(kind)
        texts = ("describe the red circle", "given a blue bird", "the image is green")
        questions = [make_question(vlm, text, 0) for text in texts]
        alone = [answer(vlm, question, None, SAMPLED)[0] for question in questions]
        together = answer_texts(vlm, questions, SAMPLED)
        assert [(one.raw, one.n_tokens) for one in together] == [(one.raw, one.n_tokens) for one in alone]
        assert [one.mean_logprob for one in together] == pytest.approx([one.mean_logprob for one in alone], abs=1e-5)


def test_questions_of_several_lengths_or_with_images_are_not_answered_together(speaker: Speaker) -> None:
    vlm = speaker("llava")
    short, long = make_question(vlm, "describe", 0), make_question(vlm, "describe the image", 0)
    with pytest.raises(BadPrompt, match=r"\[3, 5\] tokens"):
        answer_texts(vlm, [long, short], GREEDY)
    with pytest.raises(BadPrompt, match="without images"):
        answer_texts(vlm, [make_question(vlm, "describe", 1)], GREEDY)
