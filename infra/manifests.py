"""The Kubernetes objects of a deployment, made from its values: one function per file."""

from __future__ import annotations

import json
from pathlib import Path

from infra import access, clusters, kuberay, monitoring, pods
from infra.kuberay import to_plain
from infra.pods import Object
from infra.values import Values

LAUNCH = "/etc/miclip-launch"


def base(values: Values, spec_text: str) -> list[Object]:
    """What all else needs: the namespace, accounts, who may talk with whom, and the spec."""
    accounts = [access.account(values, part) for part in ("head", "worker", "metrics", "launcher")]
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": values.namespace, "labels": access.pod_security()},
        },
        *accounts,
        *access.launcher_rights(values),
        access.network(values),
        pods.config(values, "spec", {"spec.yaml": spec_text}),
    ]


def nightly(values: Values) -> list[Object]:
    """A CronJob whose pod creates a RayJob and lives as long as it does; a night that is late for another is left out."""
    night = values.schedule
    env = [
        _from_field("JOB_NAME", "metadata.labels['batch.kubernetes.io/job-name']"),
        _from_field("JOB_UID", "metadata.labels['batch.kubernetes.io/controller-uid']"),
    ]
    mount = {"name": "launch", "mountPath": LAUNCH, "readOnly": True}
    container = {
        "name": "launch",
        "image": values.images.cpu,
        "command": ["python", f"{LAUNCH}/launch.py", f"{LAUNCH}/rayjob.json", str(night.new_clusters)],
        "env": env,
        "resources": pods.SMALL,
        "securityContext": {**pods.CONTAINER, "readOnlyRootFilesystem": True},
        "volumeMounts": [mount],
    }
    volumes = [{"name": "launch", "configMap": {"name": f"{values.name}-launch"}}]
    pod = pods.template(values, "launcher", container, volumes, token=True)
    pod["spec"]["restartPolicy"] = "Never"  # what a failure policy asks for
    job = {
        # each new cluster has a deadline of its own, and the launcher waits for the last one
        "activeDeadlineSeconds": (night.new_clusters + 1) * clusters.deadline_s(values) + 1800,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [_ignore_disruption()]},
        "template": pod,
    }
    template = {
        "launch.py": Path(__file__).with_name("launch.py").read_text(),
        "rayjob.json": json.dumps(_ray_job(values), indent=1),
    }
    cron = {
        "schedule": night.cron,
        "timeZone": night.time_zone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 60 * night.start_within_minutes,
        "successfulJobsHistoryLimit": night.keep,
        "failedJobsHistoryLimit": night.keep,
        "jobTemplate": {"metadata": {"labels": pods.labels(values, "launcher")}, "spec": job},
    }
    return [
        pods.config(values, "launch", template),
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": pods.meta(values, "nightly"), "spec": cron},
    ]


def nightly_by_operator(values: Values) -> list[Object]:
    """The night as a RayCronJob, instead of the CronJob: fewer parts, but nothing keeps nights from overlapping but our lease."""
    night = values.schedule
    spec = kuberay.RayCronJobSpec(
        schedule=night.cron, time_zone=night.time_zone, job_template=clusters.job_spec(values)
    )
    return [to_plain(kuberay.RayCronJob(metadata=pods.metadata(values, "nightly"), spec=spec))]


def by_hand(values: Values) -> list[Object]:
    """One RayJob, to be created by a person."""
    return [_ray_job(values)]


def standing_cluster(values: Values) -> list[Object]:
    """A RayCluster that stays until it is deleted, for `miclip submit`."""
    return [to_plain(kuberay.RayCluster(metadata=pods.metadata(values, "cluster"), spec=clusters.cluster_spec(values)))]


def figures(values: Values) -> list[Object]:
    """The page of figures: it reads the store, so it outlives every cluster."""
    port = values.monitoring.port
    container = {
        "name": "metrics",
        "image": values.images.cpu,
        "command": ["miclip", "metrics", "--serve", str(port), "--host", "0.0.0.0"],
        "env": pods.env(values),
        "envFrom": pods.secrets(values),
        "ports": [{"name": "metrics", "containerPort": port}],
        "resources": pods.SMALL,
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "metrics"}},
        "securityContext": {**pods.CONTAINER, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = pods.template(values, "metrics", container, [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}])
    spec = {"replicas": 1, "selector": {"matchLabels": pods.labels(values, "metrics")}, "template": pod}
    return [{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": pods.meta(values, "metrics"), "spec": spec}]


def monitors(values: Values) -> list[Object]:
    """For a Prometheus operator: what to read and when to ring; for Grafana's sidecar: the dashboard."""
    marks = values.monitoring.labels
    endpoint = kuberay.Endpoint(port="metrics", interval="30s")
    selector = kuberay.Selector(match_labels={"app": values.name})
    read = kuberay.PodMonitorSpec(selector=selector, pod_metrics_endpoints=(endpoint,))
    board = pods.config(values, "dashboard", {"miclip.json": monitoring.dashboard_text()})
    board["metadata"]["labels"]["grafana_dashboard"] = "1"
    rules = monitoring.rules(values)
    return [
        to_plain(kuberay.PodMonitor(metadata=pods.metadata(values, "pods", marks), spec=read)),
        to_plain(kuberay.PrometheusRule(metadata=pods.metadata(values, "alarms", marks), spec=rules)),
        board,
    ]


def _from_field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _ignore_disruption() -> Object:
    """A pod that loses its machine is started again, and finds its RayJob."""
    return {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def _ray_job(values: Values) -> Object:
    return to_plain(kuberay.RayJob(metadata=pods.metadata(values, "by-hand"), spec=clusters.job_spec(values)))
