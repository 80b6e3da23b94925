"""Marks of traces against a loop that reads the definition, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miclip_core.evaluate.trace import NONE, count_traces, label_similarity, pair_wrong_labels, trace

LAYERS = (2, 5, 8, 11)


def marks(*leads: list[float]) -> list[tuple[int, int, bool]]:
    lead = np.array(leads, np.float32)
    found = trace(lead, np.zeros_like(lead), LAYERS)
    return list(zip(found.peak.tolist(), found.cross.tolist(), found.persistent.tolist()))


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        ([0.1, 0.3, -0.1, -0.2], (5, 8, True)),  # leads, then fails for good
        ([0.3, -0.1, 0.2, -0.2], (2, 5, False)),  # comes back in between
        ([0.3, -0.1, 0.2, 0.1], (2, 5, False)),
        ([-0.2, -0.1, 0.2, 0.3], (11, NONE, False)),  # a crossing the other way, ahead of the peak
        ([-0.2, 0.3, 0.0, -0.1], (5, 11, True)),  # zero still leads
        ([-0.2, -0.1, -0.3, -0.4], (5, NONE, False)),  # never led
        ([0.2, 0.2, 0.1, 0.0], (2, NONE, False)),  # the first of equal peaks
        ([0.0, -0.1, -0.1, -0.1], (2, 5, True)),
        ([0.1, np.nan, 0.2, -0.1], (NONE, NONE, False)),
    ],
)
def test_marks_by_hand(lead: list[float], expected: tuple[int, int, bool]) -> None:
    assert marks(lead) == [expected]


def test_marks_equal_a_loop_over_the_definition() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice([-0.2, -0.1, 0.0, 0.1, 0.2], (500, 4)).astype(np.float32)
    wrong = rng.choice([-0.1, 0.0, 0.1], (500, 4)).astype(np.float32)
    found = trace(truth, wrong, LAYERS)
    for image in range(500):
        delta = [float(np.float32(truth[image, place] - wrong[image, place])) for place in range(4)]
        peak = delta.index(max(delta))
        crossings = [place for place in range(peak + 1, 4) if delta[place] < 0 <= delta[place - 1]]
        assert found.peak[image] == LAYERS[peak]
        assert found.max_lead[image] == np.float32(max(delta))
        assert found.cross[image] == (LAYERS[crossings[0]] if crossings else NONE)
        assert found.persistent[image] == (bool(crossings) and all(d < 0 for d in delta[crossings[0] :]))


def test_similarities_that_do_not_fit_the_layers_are_refused() -> None:
    values = np.zeros((2, 3), np.float32)
    for layers in ((0, 1), (), (0, 1, 2, 3)):
        with pytest.raises(ValueError, match=f"for {len(layers)} layers"):
            trace(values, values, layers)
    with pytest.raises(ValueError, match="for 3 layers"):
        trace(values, values[:1], (0, 1, 2))
    for layers in ((0, 2, 2), (2, 1, 0), (-1, 0, 1)):
        with pytest.raises(ValueError, match="each once, ascending"):
            trace(values, values, layers)


# ---------------------------------------------------------------- similarity


def test_similarity_is_the_cosine_with_the_text_of_each_images_own_label() -> None:
    concepts = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    images = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    found = label_similarity(images, concepts, torch.tensor([0, 1, 2, NONE, 0]))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([0.6, 0.8, np.nan, np.nan, np.nan], nan_ok=True)


def test_labels_of_another_list_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 labels are outside 0 to 2, the first are \[3, -2\]"):
        label_similarity(torch.eye(4, 2), torch.eye(3, 2), torch.tensor([0, 3, NONE, -2]))


# ---------------------------------------------------------------- twins


def test_right_images_take_the_wrong_labels_of_their_class_in_turn() -> None:
    truth = np.array([3, 3, 3, 3, 3, 7, 7, 5])
    predicted = np.array([3, 9, 3, 8, 3, 7, 7, 3])
    assert pair_wrong_labels(truth, predicted).tolist() == [9, 9, 8, 8, 9, NONE, NONE, 3]
    assert predicted.tolist() == [3, 9, 3, 8, 3, 7, 7, 3]
    assert pair_wrong_labels(np.array([], int), np.array([], int)).tolist() == []


# ---------------------------------------------------------------- counts


def test_counts_by_hand_and_false_alarms() -> None:
    lead = np.array(
        [
            [0.1, 0.3, -0.1, -0.2],  # error: fails at 8 for good
            [0.3, -0.1, 0.2, 0.1],  # error: fails at 5 and comes back
            [-0.2, -0.1, -0.3, -0.4],  # error: never led
            [0.1, np.nan, 0.2, 0.1],  # error: not known
            [0.1, 0.2, 0.3, 0.4],  # right
            [0.4, 0.2, -0.1, 0.1],  # right, and yet it crosses
        ],
        np.float32,
    )
    is_error = np.array([True] * 4 + [False] * 2)
    traces = trace(lead, np.zeros_like(lead), LAYERS)
    errors, right = (count_traces(traces, which, LAYERS) for which in (is_error, ~is_error))
    assert (errors.images, errors.unknown, errors.never_led, errors.crossed, errors.persistent) == (4, 1, 1, 2, 1)
    assert errors.peaks == (1, 2, 0, 0) and errors.crossings == (0, 1, 1, 0)
    assert errors.crossed_share == pytest.approx(2 / 3) and right.crossed_share == 0.5
    assert count_traces(traces, np.zeros(6, bool), LAYERS).crossed_share is None


def test_shards_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    lead = rng.normal(size=(100, 4)).astype(np.float32)
    lead[rng.random(100) < 0.1, 2] = np.nan
    is_error = rng.random(100) < 0.4
    whole = count_traces(trace(lead, np.zeros_like(lead), LAYERS), is_error, LAYERS)
    parts = [
        count_traces(trace(lead[some], np.zeros_like(lead[some]), LAYERS), is_error[some], LAYERS)
        for some in (slice(0, 13), slice(13, 60), slice(60, 100))
    ]
    assert parts[2] + parts[0] + parts[1] == whole
    assert sum(whole.peaks) == whole.images - whole.unknown and sum(whole.crossings) == whole.crossed
    with pytest.raises(ValueError, match="same ones"):
        whole + count_traces(trace(lead, lead, (0, 1, 2, 3)), is_error, (0, 1, 2, 3))
