"""When an alarm rings, and what a dashboard shows: expressions over the figures of `miclip metrics`."""

from __future__ import annotations

import json
from typing import Any

from cluster import metrics as m
from cluster.metrics import Metric
from infra.kuberay import Alert, RuleGroup, Rules
from infra.values import Values

PAGE = "docs/operations.md"


def _n(metric: Metric) -> str:
    return metric.exposed


# ---------------------------------------------------------------- alarms


def rules(values: Values) -> Rules:
    """Every alarm; docs/operations.md has a section on each."""
    hours = values.monitoring.success_within_hours
    running = f'{_n(m.STATUS)}{{status="RUNNING"}} == 1'
    shards = f"sum by (pipeline) (increase({_n(m.SHARDS)}[3h]))"
    silent = f"changes({_n(m.SIGN)}[5m]) == 0"  # what the driver's clock shows does not matter
    launched = f'sum by (job_name) (kube_job_status_failed{{job_name=~"{values.name}-nightly-.+"}}) > 0'
    alarms = [
        _alarm("MiclipNoSuccess", f"time() - {_n(m.SUCCESS)} > {3600 * hours}", "5m", "page",
               f"{{{{ $labels.pipeline }}}} has not succeeded for {hours} hours"),
        _alarm("MiclipNeverSucceeded", f"{_n(m.NUMBER)} unless on (pipeline) {_n(m.SUCCESS)}", "12h", "ticket",
               "{{ $labels.pipeline }} has run and has never succeeded"),
        _alarm("MiclipRunFailed", f'{_n(m.STATUS)}{{status=~"FAILED|STOPPED"}} == 1', "1m", "ticket",
               "the newest run of {{ $labels.pipeline }} is {{ $labels.status }}"),
        _alarm("MiclipInterrupted", f'{_n(m.STATUS)}{{status="INTERRUPTED"}} == 1', "30m", "ticket",
               "{{ $labels.pipeline }} was told to end half an hour ago, and nobody has started it again"),
        _alarm("MiclipDriverLost", f"{running} and on (pipeline) {silent}", "2m", "ticket",
               "the newest run of {{ $labels.pipeline }} is LOST: it has not ended, and its driver gives no sign of life"),
        _alarm("MiclipNoProgress", f"{running} unless on (pipeline) {shards} > 0", "3h", "ticket",
               "{{ $labels.pipeline }} runs and has finished no shard for 3 hours"),
        _alarm("MiclipManyRetries", f"sum by (pipeline) (increase({_n(m.RETRIES)}[1h])) > 20", "5m", "ticket",
               "{{ $labels.pipeline }} repeats many shards: machines or the store come and go"),
        _alarm("MiclipBadInputs", f"sum by (pipeline) ({_n(m.BAD_INPUTS)}) > 100", "1m", "ticket",
               "{{ $labels.pipeline }} set more than 100 images aside"),
        _alarm("MiclipDamagedStage", f"sum by (pipeline) ({_n(m.DAMAGED)}) > 0", "1m", "page",
               "a stored part that {{ $labels.pipeline }} needs is gone or differs"),
        _alarm("MiclipStoreDown", f"{_n(m.UP)} == 0", "5m", "page", "the store cannot be read"),
        _alarm("MiclipFiguresGone", f"absent({_n(m.UP)})", "10m", "page", "nobody says how runs go"),
        _alarm("MiclipLaunchFailed", launched, "1m", "ticket", "{{ $labels.job_name }} ended badly"),
    ]  # fmt: skip
    return Rules(groups=(RuleGroup(name="miclip", rules=tuple(alarms)),))


def _alarm(name: str, expr: str, lasts: str, severity: str, summary: str) -> Alert:
    annotations = {"summary": summary, "runbook": f"{PAGE}#{name.lower()}"}
    return Alert(alert=name, expr=expr, lasts=lasts, labels={"severity": severity}, annotations=annotations)


# ---------------------------------------------------------------- dashboard

_PIPELINE = '{pipeline=~"$pipeline"}'
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """A Grafana dashboard: how the last night went, what runs now, what the machines do."""
    rate = "$__rate_interval"
    panels = [
        _panel("stat", "Since the last success", "s", 6, f"time() - {_n(m.SUCCESS)}{_PIPELINE}", "{{pipeline}}"),
        _panel("stat", "Newest run", "none", 6, f"{_n(m.STATUS)}{_PIPELINE} == 1", "{{pipeline}} {{status}}"),
        _panel("stat", "It took", "s", 6, f"{_n(m.RUN_SECONDS)}{_PIPELINE}", "{{pipeline}}"),
        _panel("stat", "Store", "bool_on_off", 6, _n(m.UP), "up"),
        _panel("timeseries", "Stages", "none", 12, f"sum by (state) ({_n(m.STAGES)}{_PIPELINE})", "{{state}}"),
        _panel("timeseries", "Found published, not computed", "none", 12,
               f"sum by (kind) ({_n(m.CACHED)}{_PIPELINE})", "{{kind}}"),
        _panel("timeseries", "Shards per minute", "none", 12,
               f"60 * sum by (state) (rate({_n(m.SHARDS)}{_PIPELINE}[{rate}]))", "{{state}}"),
        _panel("timeseries", "Items per second", "none", 12,
               f"sum by (kind) (rate({_n(m.ITEMS)}{_PIPELINE}[{rate}]))", "{{kind}}"),
        _panel("timeseries", "Busy workers, by what they do", "none", 12,
               f"sum by (part) (rate({_n(m.SECONDS)}{_PIPELINE}[{rate}]))", "{{part}}"),
        _panel("timeseries", "Rows per second", "none", 12,
               f"sum by (kind) (rate({_n(m.ROWS)}{_PIPELINE}[{rate}]))", "{{kind}}"),
        _panel("timeseries", "Shards repeated in the last hour", "none", 8,
               f"sum by (kind) (increase({_n(m.RETRIES)}{_PIPELINE}[1h]))", "{{kind}}"),
        _panel("timeseries", "Images set aside", "none", 8, f"sum by (kind) ({_n(m.BAD_INPUTS)}{_PIPELINE})", "{{kind}}"),
        _panel("timeseries", "Published", "bytes", 8, f"sum by (kind) ({_n(m.PUBLISHED)}{_PIPELINE})", "{{kind}}"),
        _panel("timeseries", "CPUs in use, by machine", "percent", 8, "ray_node_cpu_utilization", "{{ip}}"),
        _panel("timeseries", "GPUs in use, by machine", "percent", 8, "ray_node_gpus_utilization", "{{ip}} {{GpuIndex}}"),
        _panel("timeseries", "Memory in use, by machine", "bytes", 8, "ray_node_mem_used", "{{ip}}"),
    ]  # fmt: skip
    return {
        "title": "miclip",
        "uid": "miclip",
        "tags": ["miclip"],
        "schemaVersion": 39,
        "editable": True,
        "time": {"from": "now-24h", "to": "now"},
        "refresh": "1m",
        "templating": {"list": [_source(), _pipelines()]},
        "panels": _placed(panels),
    }


def dashboard_text() -> str:
    """The dashboard as a JSON file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _panel(kind: str, title: str, unit: str, width: int, expr: str, legend: str) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "gridPos": {"w": width, "h": 4 if kind == "stat" else 8},
        "options": {"textMode": "value_and_name"} if kind == "stat" else {},
        "targets": [{"refId": "A", "datasource": _SOURCE, "expr": expr, "legendFormat": legend}],
    }


def _placed(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Panels in rows of 24 columns, left to right; a row is as high as its panels, which are alike."""
    x = y = 0
    for number, panel in enumerate(panels, 1):
        place = panel["gridPos"]
        if x + place["w"] > 24:
            x, y = 0, y + panels[number - 2]["gridPos"]["h"]
        panel["id"] = number
        place.update(x=x, y=y)
        x += place["w"]
    return panels


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _pipelines() -> dict[str, Any]:
    query = f"label_values({_n(m.NUMBER)}, pipeline)"
    return {
        "name": "pipeline",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "pipeline"},
        "multi": True,
        "includeAll": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


# ---------------------------------------------------------------- a Prometheus without Kubernetes


def prometheus(values: Values) -> dict[str, Any]:
    """A configuration that reads figures of one machine and rings the alarms."""
    target = f"127.0.0.1:{values.monitoring.port}"
    return {
        "global": {"scrape_interval": "30s", "evaluation_interval": "30s"},
        "rule_files": ["alarms.yaml"],
        "scrape_configs": [{"job_name": "miclip", "static_configs": [{"targets": [target]}]}],
    }
