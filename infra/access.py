"""Who may do what: accounts of pods, the launcher's rights, and who may talk with whom."""

from __future__ import annotations

from urllib.parse import urlsplit

from infra import pods
from infra.clusters import AGENT_PORT, DASHBOARD_PORT, METRICS_PORT
from infra.pods import Object
from infra.values import Values

ROLE_ADDRESSES = {"machine": "169.254.169.254/32", "pod_identity": "169.254.170.23/32"}
"""Where AWS gives roles to whoever asks from a node, over plain http."""


def account(values: Values, part: str) -> Object:
    """An account of its own for each part; the cloud's role is for those that open the store."""
    meta = pods.meta(values, part)
    if part != "launcher" and values.role_annotations:
        meta["annotations"] = dict(values.role_annotations)
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False}


def launcher_rights(values: Values) -> list[Object]:
    """It creates RayJobs and looks at them, nothing else."""
    meta = pods.meta(values, "launcher")
    rule = {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": meta["name"], "namespace": values.namespace}
    role = {"apiGroup": group, "kind": "Role", "name": meta["name"]}
    return [
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": [rule]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "subjects": [subject],
            "roleRef": role,
        },
    ]


def network(values: Values) -> Object:
    """Pods talk among themselves; the operator reaches dashboards, Prometheus figures, and nobody else reaches anything."""
    net = values.network
    ours = {"podSelector": {"matchLabels": {"app": values.name}}}
    endpoint = urlsplit(values.store.endpoint or "https://s3")
    store_port = endpoint.port or {"http": 80, "https": 443}[endpoint.scheme]
    outside = sorted({*net.egress_ports, store_port})
    role = [
        {"to": [_cidr(ROLE_ADDRESSES[role])], "ports": _tcp(80)}
        for role in [values.store.role_of]
        if role in ROLE_ADDRESSES
    ]
    dns = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": pods.meta(values, "pods"),
        "spec": {
            **ours,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [ours]},
                {"from": [_namespace(net.operator_namespace)], "ports": _tcp(DASHBOARD_PORT, AGENT_PORT)},
                {
                    "from": [_namespace(net.monitoring_namespace)],
                    "ports": _tcp(METRICS_PORT, values.monitoring.port),
                },
            ],
            "egress": [
                {"to": [ours]},
                {"to": [_namespace("kube-system")], "ports": dns},
                *role,
                {"to": [_cidr(cidr) for cidr in net.egress_to], "ports": _tcp(*outside)},
            ],
        },
    }


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _cidr(cidr: str) -> Object:
    return {"ipBlock": {"cidr": cidr}}


def _tcp(*ports: int) -> list[Object]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def pod_security() -> dict[str, str]:
    """Every pod of the namespace keeps to the strictest standard."""
    return {"pod-security.kubernetes.io/enforce": "restricted"}
