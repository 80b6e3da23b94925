"""What clusters of texts are called: their most distinctive words, or what a vision-language model calls some of them."""

from __future__ import annotations

from collections.abc import Sequence

from miclip_core.explain.answers import Generation, answer
from miclip_core.explain.prompts import topic_prompt
from miclip_core.explain.question import make_question
from miclip_core.explain.texts import clean
from miclip_core.explain.vlm import Vlm

TOPIC_TOKENS = 16
"""Of a topic of 2 to 4 words, with room for a model that says more."""


def ask_topic(vlm: Vlm, texts: Sequence[str]) -> str:
    """What the model calls some texts that lie together; "" if it says nothing.

    Raises:
        BadPrompt: the model has no chat template, or one that leaves texts away.
    """
    (found,) = answer(vlm, make_question(vlm, topic_prompt(texts), 0), None, Generation(max_new_tokens=TOPIC_TOKENS))
    return clean(found.raw.strip().partition("\n")[0]).rstrip(".")
