"""What every pod of a deployment has: names and labels, environment, references to secrets, and no rights to spare."""

from __future__ import annotations

from typing import Any

from infra.kuberay import Metadata, to_plain
from infra.values import Machine, Values

Object = dict[str, Any]
USER = 1000
"""The user that infra/Dockerfile makes."""
CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_POD = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SMALL = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


def template(
    values: Values,
    part: str,
    container: Object,
    volumes: list[Object],
    machine: Machine | None = None,
    *,
    token: bool = False,
    account: str | None = None,
) -> Object:
    """A pod template; `token`: whether it may talk with the API server."""
    spec: Object = {
        "serviceAccountName": f"{values.name}-{account or part}",
        "automountServiceAccountToken": token,
        "terminationGracePeriodSeconds": 60,
        "securityContext": _POD,
        "containers": [container],
    }
    if volumes:
        spec["volumes"] = volumes
    if values.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in values.images.pull_secrets]
    if machine and machine.node_selector:
        spec["nodeSelector"] = dict(machine.node_selector)
    return {"metadata": {"labels": labels(values, part)}, "spec": spec}


def env(values: Values) -> list[Object]:
    """Where the store is, where a pod keeps what it fetched, and no telemetry."""
    store = values.store
    env = {
        "MICLIP_STORE": store.uri,
        "MICLIP_CACHE": "/cache/miclip",
        "HF_HOME": "/cache/huggingface",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AWS_DEFAULT_REGION": store.region,
    }
    if store.endpoint:
        env |= {"AWS_ENDPOINT_URL": store.endpoint, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    return [{"name": name, "value": value} for name, value in env.items()]


def secrets(values: Values, *more: str | None) -> list[Object]:
    """References alone: what they hold is never in a manifest, and never in Ray's runtime environment."""
    names = (values.store.secret, *more)
    return [{"secretRef": {"name": name}} for name in names if name]


def labels(values: Values, part: str) -> dict[str, str]:
    """Not those of app.kubernetes.io, by which KubeRay's own services select."""
    return {"app": values.name, "part": part}


def metadata(values: Values, part: str, more: dict[str, str] | None = None) -> Metadata:
    """How a part of the deployment is called and labelled."""
    marks = {**labels(values, part), **(more or {})}
    return Metadata(name=f"{values.name}-{part}", namespace=values.namespace, labels=marks)


def meta(values: Values, part: str) -> Object:
    """`metadata` as plain data."""
    return to_plain(metadata(values, part))


def config(values: Values, part: str, data: dict[str, str]) -> Object:
    """A ConfigMap of files."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(values, part), "data": data}
