"""A Ray cluster as KubeRay is asked for it: a head for drivers, groups of workers, and a job on top.

Groups have a fixed size: an executor works with the machines that are there, refuses what none of them can hold, and never
asks Ray's autoscaler for more.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from infra import kuberay, pods
from infra.pods import Object
from infra.values import Machine, Values, Workers

ROOT = Path(__file__).parent.parent
DASHBOARD_PORT, AGENT_PORT, METRICS_PORT = 8265, 52365, 8080
OBJECT_STORE_BYTES = 1_000_000_000
"""Shards go to the store and not through Ray, so its shared memory holds little."""
SPEC = "/etc/miclip/spec.yaml"


def ray_version() -> str:
    """The version of Ray that the images hold."""
    match = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert match, "constraints.txt pins ray"
    return match[1]


def entrypoint(values: Values) -> str:
    """The command of a night, in the driver on the head of its cluster."""
    keep = values.schedule.keep_runs
    drop = f" --keep-runs {keep}" if keep else ""
    pages = f" --pages {shlex.quote(values.pages.to)}" if values.pages else ""
    return f"miclip nightly {SPEC} --store {shlex.quote(values.store.uri)} --address auto{drop}{pages}"


def deadline_s(values: Values) -> int:
    """How long a night may take, in seconds."""
    return round(3600 * values.schedule.end_within_hours)


def job_spec(values: Values) -> kuberay.RayJobSpec:
    """One run on a cluster of its own."""
    night = values.schedule
    container = {
        "name": "ray-job-submitter",
        "image": values.images.cpu,
        "resources": pods.SMALL,
        "securityContext": pods.CONTAINER,
    }
    submitter = pods.template(values, "submitter", container, [], account="launcher")
    submitter["spec"]["restartPolicy"] = "Never"
    return kuberay.RayJobSpec(
        entrypoint=entrypoint(values),
        submission_mode="K8sJobMode",
        submitter_pod_template=submitter,
        submitter_config=kuberay.SubmitterConfig(backoff_limit=2),
        shutdown_after_job_finishes=True,
        ttl_seconds_after_finished=60,  # another cluster may be waiting for its machines
        active_deadline_seconds=deadline_s(values),
        pre_running_deadline_seconds=60 * night.nodes_within_minutes,
        backoff_limit=0,  # it would repeat what fails the same way everywhere; the launcher knows better
        ray_cluster_spec=cluster_spec(values),
    )


def cluster_spec(values: Values) -> kuberay.RayClusterSpec:
    """The cluster of a run, or one that stands."""
    params = {"object-store-memory": str(OBJECT_STORE_BYTES)}
    head = kuberay.HeadGroup(ray_start_params={**params, "num-cpus": "0"}, template=_head(values))
    groups = [
        kuberay.WorkerGroup(
            group_name=group.name,
            replicas=group.count,
            min_replicas=group.count,
            max_replicas=group.count,
            ray_start_params=params,
            template=_worker(values, group),
        )
        for group in values.workers
    ]
    return kuberay.RayClusterSpec(
        ray_version=ray_version(),
        auth_options=kuberay.AuthOptions(mode="token"),
        head_group_spec=head,
        worker_group_specs=tuple(groups),
    )


def _head(values: Values) -> Object:
    """Drivers run here, beside no worker: its Ray has 0 CPUs to give."""
    ports = {"gcs-server": 6379, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
    container = _ray_container(values, "ray-head", values.images.cpu, values.head, 0, ports)
    if values.secrets.webhook:
        container["envFrom"].append({"secretRef": {"name": values.secrets.webhook}})
    # a driver that is stopped needs a moment to write how far it came
    container["env"].append({"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "30"})
    container["volumeMounts"].append({"name": "spec", "mountPath": str(Path(SPEC).parent), "readOnly": True})
    spec = {"name": "spec", "configMap": {"name": f"{values.name}-spec"}}
    pod = pods.template(values, "head", container, [*_room(20), spec], values.head)
    pod["metadata"]["annotations"] = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    return pod


def _worker(values: Values, group: Workers) -> Object:
    image = values.images.gpu if group.gpus else values.images.cpu
    container = _ray_container(values, "ray-worker", image, group, group.gpus, {"metrics": METRICS_PORT})
    pod = pods.template(values, "worker", container, _room(group.cache_gb), group)
    if group.gpus:
        pod["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _ray_container(values: Values, name: str, image: str, machine: Machine, gpus: int, ports: dict[str, int]) -> Object:
    room = {"cpu": str(machine.cpus), "memory": f"{machine.memory_gb}Gi"}
    room |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
    return {
        "name": name,
        "image": image,
        "env": pods.env(values),
        "envFrom": pods.secrets(values, values.secrets.hub),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": {"requests": room, "limits": room},
        "securityContext": pods.CONTAINER,
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": "/cache"},
        ],
    }


def _room(cache_gb: int) -> list[Object]:
    shared = {"medium": "Memory", "sizeLimit": f"{2 * OBJECT_STORE_BYTES >> 20}Mi"}
    cache = {"sizeLimit": f"{cache_gb}Gi"}
    return [{"name": "shared-memory", "emptyDir": shared}, {"name": "cache", "emptyDir": cache}]
