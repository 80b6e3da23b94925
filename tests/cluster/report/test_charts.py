"""Charts: what is drawn of the numbers, and that nothing in a name can leave its place."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from cluster.report.charts import Line, Point, grid_chart, line_chart, scatter_chart, step_chart
from cluster.report.clouds import MOST_DOTS, Dot, cloud_chart
from cluster.report.columns import columns_chart
from cluster.report.frame import BOTTOM, LEFT, RIGHT, TOP
from cluster.report.reduce import MOST_POINTS, pareto, running_mean, thin, thin_extremes
from cluster.report.scales import Scale


def path_of(page: str, kind: str) -> list[tuple[float, float]]:
    d = re.search(rf'<path d="([^"]*)" class="{kind}"', page)
    assert d is not None
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", d[1])]


def test_a_line_goes_through_its_points() -> None:
    page = line_chart("t", "x", "y", [Line("a", np.array([0.0, 50, 100]), np.array([0.0, 1, 2]), 0)], counts=True)
    points = path_of(page, "line")
    assert points[0] == (LEFT, BOTTOM)
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.11)
    assert LEFT < points[2][0] < RIGHT and TOP < points[2][1] < BOTTOM


def test_a_missing_value_is_a_gap_and_a_log_axis_has_no_place_for_zero() -> None:
    x = np.arange(5.0)
    assert 'd="M54 ' in line_chart("t", "x", "y", [Line("a", x, np.array([1, 2, np.nan, 4, 5]), 0)])
    page = line_chart("t", "x", "y", [Line("a", x, np.array([1, 10, 0, 10, 1.0]), 0)], log_y=True)
    d = re.search(r'<path d="([^"]*)" class="line"', page)
    assert d is not None and d[1].count("M") == 2 and d[1].count("L") == 2


def test_hover_data_say_the_values_and_not_the_pixels() -> None:
    page = line_chart("t", "step", "y", [Line("a", np.array([0.0, 20000]), np.array([0.5, 0.25]), 0)])
    data = re.search(r'<script type="application/json" class="hover">(.*?)</script>', page)
    assert data is not None
    told = json.loads(data[1])
    assert told["lines"][0]["at"] == ["0", "20,000"] and told["lines"][0]["value"] == ["0.500", "0.250"]


def test_a_million_steps_make_no_larger_a_page() -> None:
    x = np.arange(1_000_000.0)
    y = np.random.default_rng(0).uniform(1, 2, len(x))
    page = line_chart("t", "x", "y", [Line("a", x, y, 0)], smooth=True)
    assert len(page) < 40_000
    assert len(path_of(page, "line")) == MOST_POINTS


def test_thinning_keeps_both_ends_and_no_spike_is_lost() -> None:
    x, y = np.arange(10_000.0), np.ones(10_000)
    y[1234], y[7000] = 50, -50
    kept, _ = thin(x, y)
    assert (kept[0], kept[-1], len(kept)) == (0, 9999, MOST_POINTS)
    at, values = thin_extremes(x, y)
    assert {1234, 7000} <= set(at) and (values.max(), values.min()) == (50, -50)
    assert (np.diff(at) > 0).all()


def test_the_running_mean_is_the_mean_of_a_window_that_narrows_at_the_start() -> None:
    y = np.arange(400.0)
    smooth = running_mean(y)  # half a window is 4
    assert smooth[0] == 0 and smooth[2] == 2 and smooth[200] == 200
    assert smooth[399] == np.mean([395, 396, 397, 398, 399])
    y[200] = np.nan
    assert running_mean(y)[201] == np.mean([197, 198, 199, 201, 202, 203, 204, 205])
    assert running_mean(np.array([1.0, 5, 3])).tolist() == [1, 5, 3]


def test_the_frontier_holds_what_no_other_point_beats() -> None:
    points = [(1, 5), (2, 3), (2, 4), (3, 3), (4, 1), (5, 2), (1, 6)]
    assert sorted(pareto(points)) == [0, 1, 4]
    by_definition = [
        i for i, p in enumerate(points)
        if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    ]  # fmt: skip
    assert sorted(pareto(points)) == by_definition


def test_labels_of_points_do_not_lie_on_each_other() -> None:
    points = [Point(10 + i % 6, 0.5 - 0.01 * i, f"a rather long name {i}", "tip", i) for i in range(30)]
    page = scatter_chart("t", "x", "y", points, "best")
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="name">([^<]+)<', page)
    shift = {"start": 0, "middle": 0.5, "end": 1}
    boxes = [(float(x) - shift[a] * len(n) * 6.2, float(y), len(n) * 6.2) for x, y, a, n in found]
    assert len(boxes) > 2
    for i, (x, y, width) in enumerate(boxes):
        assert x > LEFT and x + width < RIGHT
        assert not any(x < u + w and u < x + width and abs(y - v) < 12 for u, v, w in boxes[i + 1 :])
    assert page.count("data-tip") == 30


def test_a_grid_counts_every_point_once() -> None:
    generator = np.random.default_rng(0)
    xs, ys = generator.uniform(0, 1, 5000), generator.uniform(0, 1, 5000)
    page = grid_chart("t", Scale("x", 0, 1), Scale("y", 0, 1), xs, ys, 0)
    assert sum(int(n.replace(",", "")) for n in re.findall(r'data-tip="([\d,]+) here"', page)) == 5000


def test_steps_have_an_outline_from_edge_to_edge() -> None:
    line = Line("a", np.empty(0), np.array([2.0, 0, 1]), 0, "3 dead")
    page = step_chart("t", Scale("x", 0, 3), "n", np.arange(4.0), [line])
    assert (
        len(path_of(page, "line")) == 6
        and path_of(page, "line")[0][0] == LEFT
        and path_of(page, "line")[-1][0] == RIGHT
    )
    assert "3 dead" in page


@pytest.mark.parametrize("chart", [
    lambda: line_chart("t", "x", "y", []),
    lambda: line_chart("t", "x", "y", [Line("a", np.arange(3.0), np.full(3, np.nan), 0)]),
    lambda: scatter_chart("t", "x", "y", [Point(float("nan"), 1, "a", "a", 0)]),
    lambda: step_chart("t", Scale("x", 0, 1), "n", np.arange(3.0), []),
    lambda: grid_chart("t", Scale("x", 0, 1), Scale("y", 0, 1), np.array([np.nan]), np.array([1.0]), 0),
])  # fmt: skip
def test_a_chart_of_nothing_says_so(chart) -> None:  # type: ignore[no-untyped-def]
    page = chart()
    assert 'class="none"' in page and "<svg" not in page


def test_hostile_names_stay_text() -> None:
    name = "</script><script>alert(1)</script>\"'&"
    page = line_chart(name, name, name, [Line(name, np.arange(3.0), np.arange(3.0), 0, name)])
    page += scatter_chart(name, name, name, [Point(1, 1, name, name, 0)])
    assert "<script>" not in page
    assert page.count("</script>") == 1  # the end of the hover data


def test_a_group_keeps_its_colour_where_others_are_missing_and_its_points_are_walked_by_keys() -> None:
    dots = {"shape": [Dot(0.0, 1.0, "star"), Dot(2.0, 3.0, "ring")]}
    page = cloud_chart("t", dots, {"colour": 0, "shape": 1})
    assert page.count('class="s1"') == 2 and 'class="s0"' not in page  # the points and the legend
    assert page.count('tabindex="-1"') == 2 and 'data-tip="ring"' in page and "<text" not in page
    assert "No point has a place." in cloud_chart("t", {}, {})


def test_a_cloud_of_many_points_is_thinned_and_says_so() -> None:
    dots = [Dot(float(i), float(i % 7), f"p{i}") for i in range(3 * MOST_DOTS)]
    page = cloud_chart("t", {"a": dots}, {"a": 0})
    assert page.count('tabindex="-1"') == MOST_DOTS and "One of 3 points is drawn." in page


def test_columns_stand_over_their_number_and_are_as_high_as_their_share() -> None:
    lines = [
        Line("wrong", np.array([1.0, 2, 3]), np.array([0.0, 0.5, 0.25]), 1),
        Line("right", np.array([1.0, 2, 3]), np.array([0, 0, 0.5]), 0),
    ]
    page = columns_chart("t", "layer", "share", lines)
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" data-tip="([^"]+)"', page)
    assert [tip for *_, tip in found] == ["wrong, layer 2: 50.0 %", "wrong, layer 3: 25.0 %", "right, layer 3: 50.0 %"]
    heights = [float(height) for _, _, _, height, _ in found]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2) and heights[0] == heights[2]
    assert float(found[0][0]) + float(found[0][2]) == pytest.approx(
        (LEFT + RIGHT) / 2, abs=0.2
    )  # two groups meet over 2
    assert "Nothing to count." in columns_chart("t", "x", "y", [])


def test_marks_stand_over_their_place_on_the_axis() -> None:
    line = Line("a", np.array([2.0, 4]), np.array([0.0, 1]), 0)
    page = line_chart("t", "layer", "y", [line], at=[(4, "2")], from_zero=False)
    end = path_of(page, "line")[-1][0]
    assert f'<path d="M{end:g} {TOP}V{BOTTOM}"' in page and ">2</text></g>" in page
    assert LEFT < path_of(page, "line")[0][0] < LEFT + 30  # the axis begins near 2
