"""The custom resources that are used here, with those of their fields that are set: anything else is refused.

Fields, defaults and rules: KubeRay's API reference, ray.io/v1 (v1.7); Prometheus operator's, monitoring.coreos.com/v1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Pod = dict[str, Any]
"""A PodTemplateSpec of core/v1."""
Positive = Annotated[int, Field(ge=1)]


class Resource(BaseModel):
    """A part of a custom resource: fields in camel case, no others."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )


class Metadata(Resource):
    """ObjectMeta, as far as a person writes it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
    namespace: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] | None = None


class HeadGroup(Resource):
    """HeadGroupSpec."""

    ray_start_params: dict[str, str]
    template: Pod


class WorkerGroup(Resource):
    """WorkerGroupSpec."""

    group_name: str
    replicas: Annotated[int, Field(ge=0)]
    min_replicas: Annotated[int, Field(ge=0)]
    max_replicas: Positive
    ray_start_params: dict[str, str]
    template: Pod

    @model_validator(mode="after")
    def _replicas_lie_between(self) -> WorkerGroup:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(f"replicas {self.replicas} is not in {self.min_replicas}..{self.max_replicas}")
        return self


class AuthOptions(Resource):
    """AuthOptions: with `token` the operator makes a Secret and hands it to every Ray container."""

    mode: Literal["token", "disabled"]


class RayClusterSpec(Resource):
    """RayClusterSpec."""

    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    auth_options: AuthOptions
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...]


class SubmitterConfig(Resource):
    """SubmitterConfig."""

    backoff_limit: Annotated[int, Field(ge=0)]


class RayJobSpec(Resource):
    """RayJobSpec."""

    entrypoint: Annotated[str, Field(min_length=1)]
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    submitter_pod_template: Pod | None = None
    submitter_config: SubmitterConfig | None = None
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)]
    active_deadline_seconds: Positive
    pre_running_deadline_seconds: Positive
    backoff_limit: Annotated[int, Field(ge=0)]
    metadata: dict[str, str] = {}
    ray_cluster_spec: RayClusterSpec

    @model_validator(mode="after")
    def _fields_fit_together(self) -> RayJobSpec:
        """What the operator refuses although the schema allows it."""
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
        if self.submission_mode != "K8sJobMode" and self.submitter_pod_template is not None:
            raise ValueError("submitterPodTemplate is for K8sJobMode alone")
        return self


class RayCluster(Resource):
    """A cluster that stands until it is deleted."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayCluster"] = "RayCluster"
    metadata: Metadata
    spec: RayClusterSpec


class RayJob(Resource):
    """One run on a cluster of its own."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayJob"] = "RayJob"
    metadata: Metadata
    spec: RayJobSpec


class RayCronJobSpec(Resource):
    """RayCronJobSpec: it knows no concurrency policy, starting deadline or history."""

    schedule: str
    time_zone: Annotated[str, Field(min_length=1)]
    suspend: bool = False
    job_template: RayJobSpec


class RayCronJob(Resource):
    """A schedule of RayJobs; alpha, behind the feature gate RayCronJob of the operator."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayCronJob"] = "RayCronJob"
    metadata: Metadata
    spec: RayCronJobSpec


class Endpoint(Resource):
    """PodMetricsEndpoint or a service's Endpoint."""

    port: str
    interval: Annotated[str, Field(pattern=r"^\d+s$")]


class Selector(Resource):
    """LabelSelector."""

    match_labels: dict[str, str]


class PodMonitorSpec(Resource):
    """PodMonitorSpec."""

    selector: Selector
    pod_metrics_endpoints: tuple[Endpoint, ...]


class PodMonitor(Resource):
    """Pods that Prometheus reads."""

    api_version: Literal["monitoring.coreos.com/v1"] = "monitoring.coreos.com/v1"
    kind: Literal["PodMonitor"] = "PodMonitor"
    metadata: Metadata
    spec: PodMonitorSpec


class Alert(BaseModel):
    """One alarm: what it looks at, how long that must last, and what is said."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True)

    alert: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]+$")]
    expr: str
    lasts: Annotated[str, Field(pattern=r"^\d+[mh]$", alias="for")]
    labels: dict[str, str]
    annotations: dict[str, str]


class RuleGroup(Resource):
    """A group of alarms, as in a rules file of Prometheus."""

    name: str
    rules: tuple[Alert, ...]


class Rules(Resource):
    """A rules file of Prometheus, and the spec of a PrometheusRule."""

    groups: tuple[RuleGroup, ...]


class PrometheusRule(Resource):
    """Alarms."""

    api_version: Literal["monitoring.coreos.com/v1"] = "monitoring.coreos.com/v1"
    kind: Literal["PrometheusRule"] = "PrometheusRule"
    metadata: Metadata
    spec: Rules


def to_plain(resource: BaseModel) -> dict[str, Any]:
    """Plain data of a resource, as YAML or JSON shows it; what is not set is left out."""
    return resource.model_dump(mode="json", by_alias=True, exclude_none=True)
