"""Who says what kind of thing a text is about: the demo world's own words, or a vision-language model asked without images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from miclip_core.explain.answers import Generation, answer_texts
from miclip_core.explain.labels import Abstraction, Context, parse_abstraction, parse_context
from miclip_core.explain.prompts import abstraction_prompt, context_prompt
from miclip_core.explain.question import make_question
from miclip_core.world.reading import read

if TYPE_CHECKING:
    from miclip_core.explain.vlm import Vlm

_THINGS = frozenset(("shape", "word"))


class Labeller(Protocol):
    """Labels texts by abstraction and by context."""

    def abstraction(self, texts: Sequence[str]) -> list[Abstraction]:
        """For each text whether it is about a low-level or a high-level visual feature, or something else."""
        ...

    def context(self, texts: Sequence[str]) -> list[Context]:
        """For each text whether it is about an animal, a background or something else."""
        ...


class WorldLabels:
    """What the demo world's words are: shapes and written words are things, all other values are how things look."""

    def abstraction(self, texts: Sequence[str]) -> list[Abstraction]:
        """High-level where a thing is named, low-level where only looks are, other where neither is."""
        return [_abstraction({category for category, _ in read(text).named}) for text in texts]

    def context(self, texts: Sequence[str]) -> list[Context]:
        """Background where nothing but a background is said, else other; the world has no animals."""
        readings = [read(text) for text in texts]
        return [
            "background" if one.background is not None and not one.objects and one.word is None else "other"
            for one in readings
        ]


def _abstraction(categories: set[str]) -> Abstraction:
    if not categories:
        return "other"
    return "high-level visual feature" if categories & _THINGS else "low-level visual feature"


class AskedLabels:
    """A vision-language model that is asked about texts, each distinct one once, without any image.

    generation: how it answers; greedily with at most 20 tokens if left out. A drawn answer depends on generation.seed and
    the text alone. size: how many texts are asked about at once. Those of a batch are equally many tokens, and one that is
    not full is filled up by repetition, so that an answer does not depend on which other texts there are.
    """

    def __init__(self, vlm: Vlm, generation: Generation | None = None, size: int = 16) -> None:
        self._vlm, self._generation, self._size = vlm, generation or Generation(max_new_tokens=20), size
        self._known: dict[str, str] = {}

    def abstraction(self, texts: Sequence[str]) -> list[Abstraction]:
        """As in `Labeller`, by the paper's question.

        Raises:
            BadPrompt: as `make_question`, when a text holds a token that stands for an image, or the model's template
                leaves texts away.
        """
        return [parse_abstraction(raw) for raw in self._ask([abstraction_prompt(text) for text in texts])]

    def context(self, texts: Sequence[str]) -> list[Context]:
        """As in `Labeller`, by the paper's question. Raises BadPrompt as `abstraction` does."""
        return [parse_context(raw) for raw in self._ask([context_prompt(text) for text in texts])]

    def _ask(self, prompts: Sequence[str]) -> list[str]:
        """The answer to each prompt; those that are new are asked in batches of equal length."""
        new = [
            (prompt, make_question(self._vlm, prompt, 0))
            for prompt in dict.fromkeys(prompts)
            if prompt not in self._known
        ]
        new.sort(key=lambda one: len(one[1].ids))
        for _, group in groupby(new, key=lambda one: len(one[1].ids)):
            equal = list(group)
            for start in range(0, len(equal), self._size):
                asked, questions = zip(*equal[start : start + self._size], strict=True)
                filled = [*questions, *questions[-1:] * (self._size - len(questions))]
                answers = answer_texts(self._vlm, filled, self._generation)
                self._known |= {prompt: said.raw for prompt, said in zip(asked, answers, strict=False)}
        return [self._known[prompt] for prompt in prompts]
