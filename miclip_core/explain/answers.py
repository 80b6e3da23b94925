"""Answers of a vision-language model to one question about many groups of images, with how likely it finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from miclip_core.explain.question import Question
from miclip_core.torchvision_shim import ensure_torchvision
from schemas.errors import BadPrompt, NonFiniteActivation

ensure_torchvision()

from transformers import (  # noqa: E402 - needs a working torchvision
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402

if TYPE_CHECKING:
    from miclip_core.explain.vlm import Vlm

_ONE_BY_ONE = ("llava",)  # model types that expect the images of a batch in a list


@dataclass(frozen=True)
class Generation:
    """How answers are written: the likeliest token every time, or drawn from the likely ones.

    max_new_tokens: length at most. sample: draw from softmax(logits / temperature), of which the top_k likeliest tokens
    are kept, and of these the fewest that hold top_p of the probability. seed: of the draws.
    """

    max_new_tokens: int = 50
    sample: bool = False
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One answer.

    raw: as the model wrote it, without special tokens. n_tokens: how many it wrote, the one that ends it included.
    mean_logprob: mean log-probability of these tokens under the model's own distribution, in nats per token.
    ended: whether its last token ends a text, as the last that was allowed may; else it was cut off.
    """

    raw: str
    n_tokens: int
    mean_logprob: float
    ended: bool


def answer(
    vlm: Vlm,
    question: Question,
    soft_RTE: Tensor | None,
    generation: Generation,
    seeds: Sequence[int] | None = None,
) -> list[Answer]:
    """Answers to one question about B groups of images, as one batch.

    soft: [B * question.images, image_tokens, width], what `soft_tokens` gave, the images of a group together; None for a
        question without images, which is answered once, or once per seed.
    seeds: one per answer, 0 for all if left out; a draw depends on the two seeds and the row alone, never on its neighbours.
    The checkpoint's own settings of generation are not used, except for which tokens end a text.

    Raises:
        BadPrompt: the images are not as many as the question shows, or the seeds not as many as the answers.
        NonFiniteActivation: the model's scores are NaN or infinite.
    """
    count = _count(question, soft_RTE, seeds)
    return _write(vlm, [question] * count, soft_RTE, generation, seeds or [0] * count)


def answer_texts(vlm: Vlm, questions: Sequence[Question], generation: Generation) -> list[Answer]:
    """One answer to each of several questions without images, as one batch; the seed of every answer is 0.

    Raises:
        BadPrompt: a question shows images, or they are not equally many tokens: nothing is padded here.
        NonFiniteActivation: the model's scores are NaN or infinite.
    """
    lengths = sorted({len(question.ids) for question in questions})
    if len(lengths) != 1 or any(question.images for question in questions):
        raise BadPrompt(f"questions of {lengths} tokens; give some of one length and without images")
    return _write(vlm, questions, None, generation, [0] * len(questions))


def _write(
    vlm: Vlm, questions: Sequence[Question], soft_RTE: Tensor | None, generation: Generation, seeds: Sequence[int]
) -> list[Answer]:
    """Answers to questions of equal length, one each."""
    settings = _settings(vlm.module.generation_config, generation)
    chooser = _Chooser(generation, seeds)
    ids_BL = torch.stack([question.ids for question in questions]).to(vlm.device)
    extras = {name: torch.stack([question.extras[name] for question in questions]) for name in questions[0].extras}
    with _settings_in_place(vlm.module, settings):
        written_BL = vlm.module.generate(
            input_ids=ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            generation_config=settings,
            logits_processor=LogitsProcessorList([chooser]),
            **{name: value_BL.to(vlm.device) for name, value_BL in extras.items()},
            **_images(vlm, soft_RTE),
        )
    new_BL = written_BL[:, ids_BL.shape[1] :].cpu()
    logprobs_BL = torch.stack(chooser.logprobs, 1)[:, : new_BL.shape[1]].cpu()
    return [_answer(vlm, new_L, logprobs_L, settings) for new_L, logprobs_L in zip(new_BL, logprobs_BL)]


def _count(question: Question, soft_RTE: Tensor | None, seeds: Sequence[int] | None) -> int:
    """How many answers are wanted."""
    rows = 0 if soft_RTE is None else len(soft_RTE)
    if bool(rows) != bool(question.images) or rows % max(question.images, 1):
        raise BadPrompt(
            f"the question shows {question.images} images, and {rows} are given; give as many for every answer"
        )
    count = rows // question.images if question.images else len(seeds or [0])
    if seeds is not None and len(seeds) != count:
        raise BadPrompt(f"{len(seeds)} seeds for {count} answers; give one per answer")
    return count


def _settings(own: Any, generation: Generation) -> Any:
    """What the library is told: tokens are chosen by us, so it only takes the best."""
    ends = own.eos_token_id
    first = ends[0] if isinstance(ends, list) else ends
    padding = own.pad_token_id if own.pad_token_id is not None else first if first is not None else 0
    return GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        do_sample=False,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends,
        pad_token_id=padding,
    )


@contextmanager
def _settings_in_place(module: Any, settings: Any) -> Iterator[None]:
    """The checkpoint's own settings are away, because the library fills in from them whatever is left open."""
    own = module.generation_config
    module.generation_config = settings
    try:
        yield
    finally:
        module.generation_config = own


def _images(vlm: Vlm, soft_RTE: Tensor | None) -> dict[str, Any]:
    if soft_RTE is None:
        return {}
    soft_RTE = soft_RTE.to(vlm.device)
    pooled: Any = list(soft_RTE) if vlm.language.model_type in _ONE_BY_ONE else soft_RTE
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=pooled)}}


def _answer(vlm: Vlm, new_L: Tensor, logprobs_L: Tensor, settings: Any) -> Answer:
    ends = settings.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    stops = torch.isin(new_L, torch.tensor(ends, dtype=torch.int64)).nonzero()
    length = int(stops[0]) + 1 if len(stops) else len(new_L)
    raw = vlm.processor.tokenizer.decode(new_L[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(raw, length, float(logprobs_L[:length].double().mean()), bool(len(stops)))


class _Chooser(LogitsProcessor):
    """Chooses every next token, and keeps how likely the model found it; never more than the scores of one step."""

    def __init__(self, generation: Generation, seeds: Sequence[int]) -> None:
        self.logprobs: list[Tensor] = []
        self._warpers = _warpers(generation) if generation.sample else None
        self._draws_BL = np.stack([_draws(generation, seed) for seed in seeds])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] that leave one token per row."""
        logprobs_BV = scores.float().log_softmax(-1)
        is_known_B = torch.isfinite(logprobs_BV.amax(-1))
        if not bool(is_known_B.all()):
            raise NonFiniteActivation(
                f"the language model's scores are NaN or infinite for answers {(~is_known_B).nonzero().flatten().tolist()} of "
                f"this batch at token {len(self.logprobs)}; take a smaller alpha or dtype fp32"
            )
        chosen_B1 = self._choose(input_ids, scores)
        self.logprobs.append(logprobs_BV.gather(1, chosen_B1)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_B1, 0.0)

    def _choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._warpers is None:
            return scores.argmax(-1, keepdim=True)
        step = len(self.logprobs)
        warped_BV = self._warpers(input_ids, scores).double().softmax(-1)
        sums_BV = warped_BV.cumsum(-1)
        draw_B1 = torch.from_numpy(self._draws_BL[:, step : step + 1]).to(scores.device)
        below_BV = sums_BV <= draw_B1 * sums_BV[:, -1:]
        return below_BV.sum(-1, keepdim=True).clamp(max=scores.shape[1] - 1)


def _warpers(generation: Generation) -> Any:
    """The library's own, in its order."""
    return LogitsProcessorList(
        [
            TemperatureLogitsWarper(generation.temperature),
            TopKLogitsWarper(generation.top_k),
            TopPLogitsWarper(generation.top_p),
        ]
    )


def _draws(generation: Generation, seed: int) -> np.ndarray:
    """Uniform numbers for every token of one answer."""
    return np.random.default_rng([generation.seed, seed]).random(generation.max_new_tokens)
