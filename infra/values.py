"""The values that deployments differ in, and the way from a YAML file to them; they hold names of secrets, never secrets."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from cluster.secrets import holds_a_secret
from cluster.spec_errors import explain
from cluster.spec_file import parse_spec
from cluster.yaml_text import read_yaml
from schemas.base import Frozen
from schemas.errors import BadSpec


def _written(pattern: str, words: str) -> AfterValidator:
    """A text that must match; `words` say so to a person."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f'found "{text}", expected {words}')
        return text

    return AfterValidator(check)


def _network(text: str) -> str:
    try:
        IPv4Network(text, strict=False)
    except ValueError as error:
        raise ValueError(f'found "{text}", expected addresses such as 10.0.0.0/8: {error}') from None
    return text


Label = Annotated[str, _written(r"[a-z]([a-z0-9-]{0,22}[a-z0-9])?", "small letters, digits and -, at most 24 of them")]
"""A name in Kubernetes, short enough for what schedulers and operators append to it."""
Namespace = Annotated[str, _written(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "the name of a namespace")]
SecretName = Annotated[str, _written(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "the name of a Secret")]
StoreUri = Annotated[
    str, _written(r"s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[\w./-]+)?", "s3://bucket or s3://bucket/prefix")
]
Url = Annotated[str, _written(r"https?://[\w.-]+(:\d+)?", "http://host:port or https://host")]
Cron = Annotated[str, _written(r"\S+ \S+ \S+ \S+ \S+", "five fields of cron, as in 0 1 * * *")]
Cidr = Annotated[str, _written(r"\d+\.\d+\.\d+\.\d+/\d+", "addresses such as 10.0.0.0/8"), AfterValidator(_network)]
Vpc = Annotated[str, _written(r"vpc-[0-9a-f]{8,17}", "the id of a VPC, such as vpc-0123456789abcdef0")]
Tag = Annotated[str, _written(r"\S+:\S+", "registry/name:tag")]
Port = Annotated[int, Field(ge=1, le=65535)]
Labels = dict[str, str]


_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")))
"""What each network gives to its own machines, so that others have the same (RFC 1918, RFC 6598)."""


def is_private(addresses: Cidr) -> bool:
    """Whether all of these addresses are private ones."""
    network = IPv4Network(addresses, strict=False)
    return any(network.subnet_of(private) for private in _PRIVATE)


class Images(Frozen):
    """Where the two images of infra/Dockerfile were pushed; heads and launchers run the one without CUDA."""

    cpu: Tag
    gpu: Tag
    pull_secrets: tuple[SecretName, ...] = ()


class StoreValues(Frozen):
    """The bucket, and who may use it: a `secret`, or a role."""

    uri: StoreUri
    endpoint: Url | None = None
    region: str = "us-east-1"
    secret: SecretName | None = None
    """A Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    role_of: Literal["service_account", "machine", "pod_identity"] = "service_account"
    """Whose role pods have without `secret`: that of their account is asked for over https; that of the machine, or of EKS
    Pod Identity, at an address of the node, which the network policy then lets them reach."""

    @model_validator(mode="after")
    def _one_way_in(self) -> StoreValues:
        if self.secret is not None and self.role_of != "service_account":
            raise ValueError(f"secret and role_of: {self.role_of} are two ways to the store; leave one out")
        return self


class Schedule(Frozen):
    """When the night begins, and how long it may take."""

    cron: Cron = "0 1 * * *"
    time_zone: Annotated[str, Field(min_length=1)] = "Etc/UTC"
    start_within_minutes: Annotated[int, Field(ge=2)] = 60
    nodes_within_minutes: Annotated[int, Field(ge=1)] = 45
    """A cluster that has not got its machines by then fails, rather than wait until morning."""
    end_within_hours: Annotated[float, Field(gt=0)] = 10.0
    new_clusters: Annotated[int, Field(ge=0, le=8)] = 1
    """How often a night is tried again on a cluster of its own whose driver or cluster was lost, or store away."""
    keep: Annotated[int, Field(ge=1)] = 7
    """Nights whose RayJobs can still be looked at."""
    keep_runs: Annotated[int, Field(ge=1)] | None = None
    """Runs whose tables stay; each night drops what only older ones reach. All stay if left out."""


class Machine(Frozen):
    """What one pod holds."""

    cpus: Annotated[int, Field(ge=1)]
    memory_gb: Annotated[int, Field(ge=2)]
    node_selector: Labels = Field(default_factory=dict)


class Workers(Machine):
    """One group of alike worker pods. All of them are there before a night begins, and until it ends."""

    name: Label
    count: Annotated[int, Field(ge=1)]
    gpus: Annotated[int, Field(ge=0)] = 0
    cache_gb: Annotated[int, Field(ge=1)] = 100
    """Room for checkpoints and temporary files on the machine's disk."""


class Secrets(Frozen):
    """Names of Secrets whose keys become environment variables."""

    hub: SecretName | None = None
    """With HF_TOKEN, for gated models."""
    webhook: SecretName | None = None
    """With MICLIP_WEBHOOK, the URL that is told how nights end."""


class Pages(Frozen):
    """The explorer's pages, renewed after every night; the spec needs a stage of kind explorer."""

    to: StoreUri
    """Empty at first. Pods write there with what they have for the store."""
    readers: tuple[Cidr, ...] = ()
    """Whose browsers may read them straight from the bucket, by a policy that is rendered; nobody's if left out."""
    vpcs: tuple[Vpc, ...] = ()
    """Those through whose endpoint for S3 private addresses among the readers come; without `store.endpoint` they have no other way."""


class Network(Frozen):
    """Who may talk with the pods besides themselves, and where they may go."""

    operator_namespace: Namespace = "kuberay-operator"
    monitoring_namespace: Namespace = "monitoring"
    egress_ports: tuple[Port, ...] = (443, 6443)
    """443 for buckets, hubs and roles, 6443 for the API server; the port of the store's endpoint is added."""
    egress_to: tuple[Cidr, ...] = ("0.0.0.0/0",)


class Monitoring(Frozen):
    """The page of figures, and what is read by a Prometheus operator and a Grafana that watch the namespace."""

    port: Port = 9108
    success_within_hours: Annotated[int, Field(ge=1)] = 26
    labels: Labels = Field(default_factory=lambda: {"release": "prometheus"})
    """What the Prometheus operator selects monitors and rules by."""


class Values(Frozen):
    """Everything that the manifests are made from."""

    name: Label = "miclip"
    namespace: Namespace = "miclip"
    spec: Annotated[str, Field(min_length=1)]
    """The pipeline of the night: a file beside the values."""
    images: Images
    store: StoreValues
    schedule: Schedule = Schedule()
    head: Machine = Machine(cpus=4, memory_gb=16)
    workers: Annotated[tuple[Workers, ...], Field(min_length=1)]
    role_annotations: Labels = Field(default_factory=dict)
    """On the service accounts of heads, workers and figures: the cloud's role that may read and write the store."""
    secrets: Secrets = Secrets()
    pages: Pages | None = None
    network: Network = Network()
    monitoring: Monitoring = Monitoring()

    @model_validator(mode="after")
    def _names_differ(self) -> Values:
        names = [group.name for group in self.workers]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two groups of workers are called {min(twice)!r}; names of groups differ")
        return self

    @model_validator(mode="after")
    def _private_readers_have_a_way(self) -> Values:
        private = [some for some in (self.pages.readers if self.pages else ()) if is_private(some)]
        if self.pages and private and not self.pages.vpcs and self.store.endpoint is None:
            raise ValueError(
                f"pages.readers: {private[0]} is private: AWS sees such addresses only behind the endpoint of a VPC, where "
                "strangers may have them too; name your VPC under pages.vpcs, or the public addresses that your network has"
            )
        return self


def read_values(path: Path) -> tuple[Values, str]:
    """The values of a YAML file, and the text of the valid spec that they name.

    Raises:
        BadSpec: with file, line, field, found and expected; or because something in it looks like a credential, or
            the spec is not valid.
    """
    document = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if secret := [place for where, place in document.places.items() if holds_a_secret(_text(document.data, where))]:
        raise BadSpec(f"{secret[0]}  this looks like a credential; put it into a Secret and name that here")
    adapter: TypeAdapter[Values] = TypeAdapter(Values)
    try:
        values = adapter.validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems = explain(error, document.data, adapter)
        raise BadSpec(
            "\n".join(f"{document.place(p.path)}  {'.'.join(map(str, p.path))}: {p.text}" for p in problems)
        ) from None
    spec = path.parent / values.spec
    if not spec.is_file():
        raise BadSpec(f"{document.place(('spec',))}  spec: {spec} is no file; expected the spec of the night")
    text = spec.read_text(encoding="utf-8")
    if parse_spec(text, str(spec)).pipeline.store is not None:
        raise BadSpec(f"{spec}: it names a store, as {path} does; leave it out here, so that there is one")
    return values, text


def _text(data: Any, where: tuple[Any, ...]) -> str:
    for part in where:
        data = data[part]
    return data if isinstance(data, str) else ""
