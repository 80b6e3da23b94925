"""The prompts against digests of the bytes that the paper's code sends."""

from __future__ import annotations

import pytest

from miclip_core.explain import prompts

RELEASED = {
    prompts.STEERING: (460, "40995b480244bb6c4aecea8d67b1678764cabfacd1f4353112839620afb93fd0"),
    prompts.MASKS: (738, "4ab37812a7a09e5d663b2483233dca17982b21d19f9d3ca9c1eac57825a2eb70"),
    prompts.HEATMAPS: (707, "32aa98a393a8996915d78b57eb5be5ee59cfdf92cc882c618f401c3c9b267125"),
    prompts.abstraction_prompt("X"): (263, "98066770b8e978d5de5feda1aeebbdf85020a2694f0359aaf69b4c9c58e72477"),
    prompts.context_prompt("X"): (302, "dcffd5eb5417e0ce0fa37acc4ec9d96c268d3aa3f57bc9d9a288e248d4fc3420"),
}


@pytest.mark.parametrize("text", RELEASED)
def test_every_byte_is_that_of_the_released_prompt(text: str) -> None:
    assert (len(text.encode()), prompts.prompt_sha256(text)) == RELEASED[text]


def test_only_the_steering_prompt_ends_without_a_period() -> None:
    quoted = '"The highlighted element in the image is a"'
    assert prompts.STEERING.endswith(quoted)
    assert prompts.MASKS.endswith(quoted + ".") and prompts.HEATMAPS.endswith(quoted + ".")


def test_a_topic_is_asked_for_with_every_explanation_on_a_line_of_its_own() -> None:
    assert prompts.topic_prompt(["Red.", "A dog"]).splitlines()[-3:] == ["Explanations:", "- Red.", "- A dog"]
