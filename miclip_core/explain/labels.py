"""What kind of thing a text is about, read from a language model's answer."""

from __future__ import annotations

from typing import Literal, get_args

Abstraction = Literal["low-level visual feature", "high-level visual feature", "other"]
Context = Literal["animal", "background", "other"]
ABSTRACTIONS: tuple[Abstraction, ...] = get_args(Abstraction)
CONTEXTS: tuple[Context, ...] = get_args(Context)


def parse_abstraction(answer: str) -> Abstraction:
    """The label that an answer names: of several the first one, `other` without any; hyphens and case do not matter."""
    answer = answer.lower().replace("-", " ").replace("‑", " ")
    places = [(answer.find(level), number) for number, level in enumerate(("low level", "high level"))]
    named = [(place, number) for place, number in places if place >= 0]
    return ABSTRACTIONS[min(named)[1]] if named else "other"


def parse_context(answer: str) -> Context:
    """The label that an answer names: animal before background, whichever comes first, and `other` without any."""
    answer = answer.lower()
    return next((label for label in ("animal", "background") if label in answer), "other")
