"""Alarms and dashboard: they parse, read figures that exist by labels that those have, and every alarm has its section."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from cluster.metrics import METRICS
from infra.monitoring import PAGE, dashboard, rules
from infra.render import DEFAULTS, RENDERED
from infra.values import read_values

ROOT = Path(__file__).parent.parent.parent
LABELS = {metric.exposed: set(metric.labels) for metric in METRICS}
OF_RAY = {"ray_node_cpu_utilization", "ray_node_gpus_utilization", "ray_node_mem_used"}
EXTERNAL = {*OF_RAY, "kube_job_status_failed"}
EXTERNAL_LABELS = {"job_name", "ip", "GpuIndex"}
ALARMS = rules(read_values(DEFAULTS)[0]).groups[0].rules
PROMTOOL = shutil.which("promtool")


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, legend or summary) of every alarm and panel, and of the list of pipelines."""
    for alarm in ALARMS:
        yield alarm.alert, alarm.expr, re.sub(r"{{ \$labels\.(\w+) }}", r"{{\1}}", alarm.annotations["summary"])
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "5m").replace("$pipeline", ".*")
            yield panel["title"], expr, target["legendFormat"]


def selectors(expr: str) -> list[Any]:
    """Every selector of figures in an expression, as Prometheus' own grammar reads it."""
    return list(_selectors(promql_parser.parse(expr)))


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if isinstance(child := getattr(node, name, None), promql_parser.Expr) or (name == "vector_selector" and child):
            yield from _selectors(child)
    for child in getattr(node, "args", ()) or ():
        yield from _selectors(child)


@pytest.mark.parametrize(("where", "expr", "words"), expressions(), ids=lambda text: text[:30])
def test_an_expression_reads_figures_that_exist_by_labels_that_they_have(where: str, expr: str, words: str) -> None:
    found = selectors(expr)
    assert found
    for selector in found:
        assert selector.name in LABELS or selector.name in EXTERNAL, where
        allowed = LABELS.get(selector.name, EXTERNAL_LABELS)
        assert {matcher.name for matcher in selector.matchers.matchers} <= allowed
    known = set().union(*(LABELS.get(selector.name, EXTERNAL_LABELS) for selector in found))
    grouped = {label.strip() for by in re.findall(r"(?:by|on) \(([^)]*)\)", expr) for label in by.split(",")}
    assert grouped <= known
    kept = grouped if expr.lstrip("60* ").startswith("sum by") else known
    assert set(re.findall(r"{{(\w+)}}", words)) <= kept, "a label in the words is one that the answer has"


def test_labels_have_the_values_that_are_asked_for() -> None:
    from typing import get_args

    from cluster.runs import RunStatus

    asked = {value for _, expr, _ in expressions() for value in re.findall(r'status=~?"([A-Z|]+)"', expr)}
    assert asked and {status for value in asked for status in value.split("|")} <= set(get_args(RunStatus))


def test_every_figure_of_ours_is_shown_or_rings() -> None:
    read = {selector.name for _, expr, _ in expressions() for selector in selectors(expr)}
    assert set(LABELS) - read == set()


def test_the_figures_of_others_are_those_that_they_give() -> None:
    """Ray writes its own names in the source of its agent."""
    source = Path(importlib.util.find_spec("ray").submodule_search_locations[0])  # type: ignore[union-attr,index]
    agent = (source / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text()
    for name in OF_RAY:
        assert f'"{name.removeprefix("ray_")}"' in agent


def test_every_alarm_has_its_section_and_every_section_its_alarm() -> None:
    page = (ROOT / PAGE).read_text()
    assert re.findall(r"^### (Miclip\w+)$", page, re.M) == [alarm.alert for alarm in ALARMS]
    for alarm in ALARMS:
        assert alarm.annotations["runbook"] == f"{PAGE}#{alarm.alert.lower()}"


def test_the_page_lists_every_figure_with_its_labels() -> None:
    """`METRICS` in order, as rows of a table."""
    page = (ROOT / PAGE).read_text()
    rows = re.findall(r"^\| `(miclip_\w+)` \| ?([\w, ]*?) ?\| (.+) \|$", page, re.M)
    assert rows == [(metric.exposed, ", ".join(metric.labels), metric.meaning) for metric in METRICS]


def test_panels_lie_side_by_side_and_none_upon_another() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard()["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def test_the_dashboard_asks_for_its_source_and_its_pipelines() -> None:
    board = json.loads((RENDERED / "monitoring" / "dashboard.json").read_text())
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"${source}"}
    assert [variable["name"] for variable in board["templating"]["list"]] == ["source", "pipeline"]


# ---------------------------------------------------------------- as Prometheus itself sees them

NIGHT = {
    "evaluation_interval": "1m",
    "tests": [
        {   # a night that ended at 1 h after the epoch, and none after it
            "interval": "1m",
            "input_series": [
                {"series": 'miclip_last_success_timestamp_seconds{pipeline="zoo"}', "values": "3600+0x1800"},
                {"series": "miclip_store_up", "values": "1+0x1800"},
            ],
            "alert_rule_test": [
                {"eval_time": "26h", "alertname": "MiclipNoSuccess", "exp_alerts": []},
                {"eval_time": "28h", "alertname": "MiclipNoSuccess", "exp_alerts": [{"pipeline": "zoo", "severity": "page"}]},
                {"eval_time": "28h", "alertname": "MiclipFiguresGone", "exp_alerts": []},
                {"eval_time": "28h", "alertname": "MiclipStoreDown", "exp_alerts": []},
            ],
        },
        {   # a driver that lives and gets nowhere, one that works, and one that died after 10 minutes
            "interval": "1m",
            "input_series": [
                {"series": f'miclip_run_status{{pipeline="{name}",status="RUNNING"}}', "values": "1+0x600"}
                for name in ("stuck", "busy", "dead")
            ]
            + [
                {"series": 'miclip_run_sign_of_life_timestamp_seconds{pipeline="stuck"}', "values": "0+60x600"},
                # its clock is ten hours behind
                {"series": 'miclip_run_sign_of_life_timestamp_seconds{pipeline="busy"}', "values": "-36000+60x600"},
                {"series": 'miclip_run_sign_of_life_timestamp_seconds{pipeline="dead"}', "values": "0+60x10 600+0x590"},
                {"series": 'miclip_shards_total{pipeline="stuck",kind="extract",state="done"}', "values": "7+0x600"},
                {"series": 'miclip_shards_total{pipeline="busy",kind="extract",state="done"}', "values": "0+1x600"},
                {"series": 'miclip_shards_total{pipeline="dead",kind="extract",state="done"}', "values": "0+1x600"},
            ],
            "alert_rule_test": [
                {"eval_time": "1h", "alertname": "MiclipNoProgress", "exp_alerts": []},
                {"eval_time": "7h", "alertname": "MiclipNoProgress",
                 "exp_alerts": [{"pipeline": "stuck", "status": "RUNNING", "severity": "ticket"}]},
                {"eval_time": "14m", "alertname": "MiclipDriverLost", "exp_alerts": []},
                {"eval_time": "18m", "alertname": "MiclipDriverLost",
                 "exp_alerts": [{"pipeline": "dead", "status": "RUNNING", "severity": "ticket"}]},
                {"eval_time": "20m", "alertname": "MiclipFiguresGone", "exp_alerts": [{"severity": "page"}]},
            ],
        },
        {
            "interval": "1m",
            "input_series": [
                {"series": 'miclip_run_number{pipeline="new"}', "values": "1+0x900"},
                {"series": 'miclip_run_status{pipeline="new",status="FAILED"}', "values": "1+0x900"},
                {"series": 'miclip_run_status{pipeline="new",status="DONE"}', "values": "0+0x900"},
                {"series": 'miclip_run_status{pipeline="gone",status="INTERRUPTED"}', "values": "1+0x900"},
                {"series": 'miclip_run_status{pipeline="back",status="INTERRUPTED"}', "values": "1+0x20 0+0x880"},
                {"series": 'miclip_bad_inputs_total{pipeline="new",kind="extract"}', "values": "60+0x900"},
                {"series": 'miclip_bad_inputs_total{pipeline="new",kind="explain"}', "values": "60+0x900"},
                {"series": 'miclip_retries_total{pipeline="new",kind="extract"}', "values": "0+1x900"},
                {"series": 'miclip_damaged_stages_total{pipeline="new",kind="extract"}', "values": "0+0x60 1+0x840"},
                {"series": 'kube_job_status_failed{job_name="miclip-nightly-29"}', "values": "1+0x900"},
                {"series": 'kube_job_status_failed{job_name="other-nightly-29"}', "values": "1+0x900"},
                {"series": "miclip_store_up", "values": "0+0x900"},
            ],
            "alert_rule_test": [
                {"eval_time": "13h", "alertname": "MiclipNeverSucceeded",
                 "exp_alerts": [{"pipeline": "new", "severity": "ticket"}]},
                {"eval_time": "5m", "alertname": "MiclipRunFailed",
                 "exp_alerts": [{"pipeline": "new", "status": "FAILED", "severity": "ticket"}]},
                {"eval_time": "29m", "alertname": "MiclipInterrupted", "exp_alerts": []},
                {"eval_time": "31m", "alertname": "MiclipInterrupted",
                 "exp_alerts": [{"pipeline": "gone", "status": "INTERRUPTED", "severity": "ticket"}]},
                {"eval_time": "5m", "alertname": "MiclipBadInputs",
                 "exp_alerts": [{"pipeline": "new", "severity": "ticket"}]},
                {"eval_time": "2h", "alertname": "MiclipManyRetries",
                 "exp_alerts": [{"pipeline": "new", "severity": "ticket"}]},
                {"eval_time": "50m", "alertname": "MiclipDamagedStage", "exp_alerts": []},
                {"eval_time": "70m", "alertname": "MiclipDamagedStage",
                 "exp_alerts": [{"pipeline": "new", "severity": "page"}]},
                {"eval_time": "6m", "alertname": "MiclipStoreDown", "exp_alerts": [{"severity": "page"}]},
                {"eval_time": "6m", "alertname": "MiclipLaunchFailed",
                 "exp_alerts": [{"job_name": "miclip-nightly-29", "severity": "ticket"}]},
            ],
        },
    ],
}  # fmt: skip


def filled_in(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{ \$labels\.(\w+) }}", lambda match: labels[match[1]], text)


def night() -> dict[str, Any]:
    """The nights as promtool reads them: an alarm that rings does so with the words of its labels filled in."""
    described = {alarm.alert: alarm.annotations for alarm in ALARMS}
    copy = json.loads(json.dumps(NIGHT))
    for check in (check for case in copy["tests"] for check in case["alert_rule_test"]):
        words = described[check["alertname"]]
        check["exp_alerts"] = [
            {"exp_labels": labels, "exp_annotations": {name: filled_in(text, labels) for name, text in words.items()}}
            for labels in check["exp_alerts"]
        ]
    return copy


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, which Debian's package prometheus has")
def test_prometheus_takes_the_rules_and_alarms_ring_when_they_should(tmp_path: Path) -> None:
    rules_file = RENDERED / "monitoring" / "alarms.yaml"
    (tmp_path / "night.yaml").write_text(yaml.safe_dump({"rule_files": [str(rules_file)], **night()}))
    config = RENDERED / "monitoring" / "prometheus.yaml"
    for words in (["check", "config", str(config)], ["test", "rules", str(tmp_path / "night.yaml")]):
        done = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alarm_is_rung_in_some_night() -> None:
    rung = {c["alertname"] for case in NIGHT["tests"] for c in case["alert_rule_test"] if c["exp_alerts"]}
    assert rung == {alarm.alert for alarm in ALARMS}
