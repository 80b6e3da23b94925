"""What vision-language models are asked: about highlighted images, about texts, and about groups of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_KINDS = "This element may range from a low-level visual feature to a high-level abstract concept. "
_TASK = (
    "Your task is to describe this element in a single, clear sentence. If the element is a high-level abstract concept, "
    "describe it as such; otherwise, describe its visual patterns. Favor a more general interpretation. "
)
_BEGIN = 'Start the highlighted element description with "The highlighted element in the image is a"'
_SET = "You are given set of images highlighting a visual or semantic element. "
_SINGLE = "Provide a single description for the highlighted element appearing in all images, and please ignore the "

# The released code ends the first one without a period and the other two with one; every byte is kept.
STEERING = f"You are given an image highlighting a visual or semantic element. {_KINDS}{_TASK}{_BEGIN}"
MASKS = (
    f"{_SET}The patches of the images not showing the element are masked out, giving the impression of a pixelated image. "
    f"{_KINDS}{_TASK}{_SINGLE}pixelated effect of the mask when describing the element. {_BEGIN}."
)
HEATMAPS = (
    f"{_SET}The patches of the images showing the element are highlighted with a green heatmap. "
    f"{_KINDS}{_TASK}{_SINGLE}overlayed green heatmap when describing the element. {_BEGIN}."
)

_LABEL = (
    "You are given an explanation of a visual or semantic element. Your task is to assign a label to the explanation. "
    "The labels are:\n"
)
_ABSTRACTION = (
    f"{_LABEL}- 'low-level visual feature'\n- 'high-level visual feature'\n- 'other'\n\n"
    "Select the most appropriate label and paste it.\n\nExplanation:\n\n"
)
_CONTEXT = (
    f"{_LABEL}- 'background': ground, sky, wall, landscape, etc.\n- 'animal': dog, cat, bird, etc.\n- 'other'\n\n"
    "Select the most appropriate label (background, animal, other) and paste it.\n\n"
)
_TOPIC = (
    "You are given explanations of visual or semantic elements that belong to one group. Your task is to name the topic "
    "that they share in 2 to 4 words. Answer with the topic alone.\n\nExplanations:\n"
)


def abstraction_prompt(text: str) -> str:
    """Asks whether an explanation is of a low-level or a high-level visual feature, in the words of the paper's code."""
    return _ABSTRACTION + text


def context_prompt(text: str) -> str:
    """Asks whether an explanation is about a background or an animal, in the words of the paper's code."""
    return _CONTEXT + text


def topic_prompt(texts: Sequence[str]) -> str:
    """Asks for the topic of a group of explanations in 2 to 4 words; the paper does not print its own question."""
    return _TOPIC + "".join(f"- {text}\n" for text in texts)


def prompt_sha256(text: str) -> str:
    """sha256 of the bytes of a prompt, in hexadecimal digits: equal ones asked equal questions."""
    return hashlib.sha256(text.encode()).hexdigest()
