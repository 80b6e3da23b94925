"""Manifests: the kept ones are those of the defaults, fit the schemas, refer to what is there, and give no rights to spare."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from cluster.cli.app import app
from infra import kuberay
from infra.render import DEFAULTS, RENDERED, main, render
from infra.values import Values, read_values

ROOT = Path(__file__).parent.parent.parent
OWN_SCHEMA = {"RayJob": kuberay.RayJob, "RayCluster": kuberay.RayCluster, "RayCronJob": kuberay.RayCronJob,
              "PodMonitor": kuberay.PodMonitor, "PrometheusRule": kuberay.PrometheusRule}  # fmt: skip
FILES = render(*read_values(DEFAULTS))
EVERYTHING = {
    "images": {"cpu": "r.example.org/m:1", "gpu": "r.example.org/m:2", "pull_secrets": ["pull"]},
    "pages": {"to": "s3://b-1/pages"},
    "store": {"uri": "s3://b-1/lake", "endpoint": "http://s3.example.org:9000", "secret": "keys", "region": "eu-1"},
    "workers": [{"name": "big", "cpus": 4, "memory_gb": 8, "gpus": 2, "node_selector": {"gpu": "h100"}, "count": 3}],
    "secrets": {"hub": "hub", "webhook": "hook"},
    "schedule": {"keep_runs": 14, "new_clusters": 0},
    "role_annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/lake"},
    "network": {"egress_to": ["10.0.0.0/8"]},
    "name": "lab", "namespace": "lab-night", "spec": "first.yaml",
}  # fmt: skip
FULL = render(Values.model_validate_json(json.dumps(EVERYTHING)), "kind: selftest\n")


def documents(files: dict[str, str]) -> list[dict[str, Any]]:
    """Every object of the Kubernetes files, as kubectl would read it."""
    return [copy.deepcopy(d) for name, text in files.items() if name.startswith("k8s/") for d in parsed(text)]


@cache
def parsed(text: str) -> list[dict[str, Any]]:
    """By another library than the one that wrote it, and by the older rules of YAML that kubectl's follows."""
    return list(yaml.load_all(text, yaml.CSafeLoader))


def inside(value: Any, key: str) -> Iterator[Any]:
    """Every value under this key, however deep."""
    if isinstance(value, dict):
        for name, held in value.items():
            if name == key:
                yield held
            yield from inside(held, key)
    elif isinstance(value, list):
        for held in value:
            yield from inside(held, key)


def pods(files: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind of its owner, pod template) of every pod that can come of the files."""
    for document in documents(files):
        for template in [*inside(document, "template"), *inside(document, "submitterPodTemplate")]:
            yield document["kind"], template


@pytest.fixture(scope="module", params=["defaults", "everything"])
def files(request: pytest.FixtureRequest) -> dict[str, str]:
    return FILES if request.param == "defaults" else FULL


# ---------------------------------------------------------------- kept


def test_what_is_kept_is_what_the_defaults_give() -> None:
    """`python -m infra.render` writes it anew."""
    kept = {str(p.relative_to(RENDERED)): p.read_text() for p in RENDERED.rglob("*") if p.is_file()}
    assert kept.keys() == FILES.keys()
    assert [name for name, text in FILES.items() if kept[name] != text] == []


def test_the_command_writes_all_files_or_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--values", str(DEFAULTS), "--out", str(tmp_path / "out")]) == 0
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")} == FILES.keys()
    (tmp_path / "bad.yaml").write_text("spec: first.yaml\n")
    assert main(["--values", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "none")]) == 2
    assert "images: this field is missing" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_what_is_deployed_knows_nothing_of_how() -> None:
    """infra may import cluster and schemas; no package that is installed imports infra."""
    for package in ("schemas", "miclip_core", "jobs", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(r"^\s*(?:from|import) infra\b", path.read_text(), re.M), path
    for path in (ROOT / "infra").glob("*.py"):
        found = re.findall(r"^\s*(?:from|import) (schemas|miclip_core|jobs|cluster)\b", path.read_text(), re.M)
        assert set(found) <= {"schemas", "cluster"}, path


# ---------------------------------------------------------------- schemas


def test_every_object_fits_its_schema(files: dict[str, str]) -> None:
    kinds = set()
    for document in documents(files):
        kinds.add(document["kind"])
        if model := OWN_SCHEMA.get(document["kind"]):
            assert kuberay.to_plain(model.model_validate_json(json.dumps(document))) == document
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)
    assert kinds > {*OWN_SCHEMA, "CronJob", "Deployment", "NetworkPolicy", "Role", "ConfigMap", "ServiceAccount"}


def test_every_pod_inside_a_custom_resource_fits_the_schema_of_pods(files: dict[str, str]) -> None:
    templates = [template for kind, template in pods(files) if kind in OWN_SCHEMA]
    assert len(templates) > 6
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, "1.37", strict=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("shutdownAfterJobFinish", True), ("backoffLimit", "3"), ("submissionMode", "Sidecar"), ("activeDeadlineSeconds", 0),
     ("shutdownAfterJobFinishes", False), ("submissionMode", "SidecarMode")],
)  # fmt: skip
def test_what_the_operator_would_refuse_is_refused_here(field: str, value: object) -> None:
    (job,) = [d for d in documents(FILES) if d["kind"] == "RayJob"]
    kuberay.RayJob.model_validate_json(json.dumps(job))
    job["spec"][field] = value
    with pytest.raises(ValidationError):
        kuberay.RayJob.model_validate_json(json.dumps(job))


# ---------------------------------------------------------------- references


def test_every_name_that_is_referred_to_is_there(files: dict[str, str]) -> None:
    made = {(d["kind"], d["metadata"]["name"]) for d in documents(files)}
    everything = documents(files)
    assert {("ServiceAccount", name) for name in inside(everything, "serviceAccountName")} <= made
    assert {("ConfigMap", volume["name"]) for volume in inside(everything, "configMap")} <= made
    assert len({d["metadata"].get("namespace", d["metadata"]["name"]) for d in everything}) == 1
    for _, template in pods(files):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", ())}
        mounted = {m["name"] for c in template["spec"]["containers"] for m in c.get("volumeMounts", ())}
        assert mounted == volumes


def test_names_leave_room_for_what_schedulers_append(files: dict[str, str]) -> None:
    """A CronJob appends 9 letters; the operator takes names of RayJobs of at most 47."""
    assert all(len(d["metadata"]["name"]) + 9 <= 47 for d in documents(files) if d["kind"] != "Namespace")


def test_the_rayjob_of_the_launcher_is_the_one_by_hand(files: dict[str, str]) -> None:
    (held,) = inside(documents(files), "rayjob.json")
    (job,) = [d for d in documents(files) if d["kind"] == "RayJob"]
    assert json.loads(held) == job


def test_the_launcher_holds_the_script_that_is_tested_and_may_do_what_it_does(files: dict[str, str]) -> None:
    assert list(inside(documents(files), "launch.py")) == [(ROOT / "infra" / "launch.py").read_text()]
    (role,) = [d for d in documents(files) if d["kind"] == "Role"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]


def test_the_monitor_reads_ports_that_pods_have(files: dict[str, str]) -> None:
    (monitor,) = [d for d in documents(files) if d["kind"] == "PodMonitor"]
    chosen = [
        t
        for _, t in pods(files)
        if monitor["spec"]["selector"]["matchLabels"].items() <= t["metadata"]["labels"].items()
    ]
    ports = [
        {p["name"]: p["containerPort"] for c in t["spec"]["containers"] for p in c.get("ports", ())} for t in chosen
    ]
    assert {p["metrics"] for p in ports if "metrics" in p} == {8080, 9108}


def test_every_command_is_one_that_miclip_has(files: dict[str, str]) -> None:
    commands = [shlex.split(text) for text in inside(documents(files), "entrypoint")]
    commands += [words for words in inside(documents(files), "command") if words[0] == "miclip"]
    assert {words[1] for words in commands} == {"nightly", "metrics"}
    for words in commands:
        shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, words
        assert [word for word in words if word.startswith("--") and word not in shown.output] == []


def test_the_launcher_waits_longer_than_all_its_clusters_may_take() -> None:
    for files, clusters in ((FILES, 2), (FULL, 1)):
        (cron,) = [d for d in documents(files) if d["kind"] == "CronJob"]
        (job,) = [d for d in documents(files) if d["kind"] == "RayJob"]
        assert job["spec"]["activeDeadlineSeconds"] == 36000
        assert cron["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] > clusters * 36000
        (command,) = inside(cron, "command")
        assert command[-1] == str(clusters - 1)


def test_the_operator_itself_repeats_nothing(files: dict[str, str]) -> None:
    specs = [job["spec"] for job in documents(files) if job["kind"] == "RayJob"]
    specs += [job["spec"]["jobTemplate"] for job in documents(files) if job["kind"] == "RayCronJob"]
    assert [spec["backoffLimit"] for spec in specs] == [0, 0]


def test_a_night_drops_old_runs_only_where_the_values_say_so() -> None:
    kept = [
        text.partition(" --address auto")[2]
        for files in (FILES, FULL)
        for text in inside(documents(files), "entrypoint")
    ]
    assert kept == 2 * [" --pages s3://lab-miclip/pages"] + 2 * [" --keep-runs 14 --pages s3://b-1/pages"]


def test_pages_are_renewed_only_where_the_values_say_where() -> None:
    plain = {name: value for name, value in EVERYTHING.items() if name != "pages"}
    files = render(Values.model_validate_json(json.dumps(plain)), "kind: selftest\n")
    assert not [text for text in inside(documents(files), "entrypoint") if "--pages" in text]
    assert "pages-policy.json" in FILES and "pages-policy.json" not in FULL and "pages-policy.json" not in files


# ---------------------------------------------------------------- security


def test_no_pod_has_rights_to_spare(files: dict[str, str]) -> None:
    for _, template in pods(files):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"]
        for container in spec["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {"requests", "limits"} <= container["resources"].keys()
        talks = template["metadata"]["labels"]["part"] == "launcher"
        assert spec["automountServiceAccountToken"] is talks, "only the launcher asks the API server"


def test_clusters_ask_for_a_token_and_drivers_share_no_machine_with_workers(files: dict[str, str]) -> None:
    specs = [*inside(documents(files), "rayClusterSpec")]
    specs += [d["spec"] for d in documents(files) if d["kind"] == "RayCluster"]
    assert len(specs) == 3
    for spec in specs:
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert "nvidia" not in json.dumps(spec["headGroupSpec"])
        assert spec["rayVersion"] == re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]


def test_secrets_are_referred_to_and_the_webhook_is_known_to_drivers_alone() -> None:
    refs = {
        template["metadata"]["labels"]["part"]: sorted(ref["name"] for ref in inside(template, "secretRef"))
        for _, template in pods(FULL)
    }
    assert refs == {
        "head": ["hook", "hub", "keys"],
        "worker": ["hub", "keys"],
        "metrics": ["keys"],
        "submitter": [],
        "launcher": [],
    }
    assert not list(inside(documents(FULL), "runtimeEnvYAML"))
    assert not [d for d in documents(FULL) if d["kind"] == "Secret"]


def test_the_network_lets_in_the_operator_and_prometheus_and_out_to_the_store() -> None:
    (policy,) = [d["spec"] for d in documents(FULL) if d["kind"] == "NetworkPolicy"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["podSelector"] == policy["ingress"][0]["from"][0]["podSelector"] == {"matchLabels": {"app": "lab"}}
    assert [p["port"] for rule in policy["ingress"] for p in rule.get("ports", ())] == [8265, 52365, 8080, 9108]
    assert [p["port"] for p in policy["egress"][-1]["ports"]] == [443, 6443, 9000]
    assert policy["egress"][-1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    assert all(template["metadata"]["labels"]["app"] == "lab" for _, template in pods(FULL))


@pytest.mark.parametrize(
    ("role_of", "cidr"), [("machine", "169.254.169.254/32"), ("pod_identity", "169.254.170.23/32")]
)
def test_the_network_lets_pods_ask_for_roles_that_nodes_give(role_of: str, cidr: str) -> None:
    given = {**EVERYTHING, "store": {"uri": "s3://b-1/lake", "role_of": role_of}}
    files = render(Values.model_validate_json(json.dumps(given)), "kind: selftest\n")
    (policy,) = [d["spec"] for d in documents(files) if d["kind"] == "NetworkPolicy"]
    rule = {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "TCP", "port": 80}]}
    assert rule in policy["egress"]
    (usual,) = [d["spec"] for d in documents(FULL) if d["kind"] == "NetworkPolicy"]
    assert 80 not in [port["port"] for rule in usual["egress"] for port in rule.get("ports", ())]


# ---------------------------------------------------------------- what the values change


def test_gpus_stand_where_schedulers_and_drivers_look_for_them() -> None:
    (worker,) = {json.dumps(t) for _, t in pods(FULL) if t["metadata"]["labels"]["part"] == "worker"}
    spec = json.loads(worker)["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert spec["containers"][0]["image"] == "r.example.org/m:2"
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu" and spec["nodeSelector"] == {"gpu": "h100"}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    (group,) = next(inside(documents(FULL), "workerGroupSpecs"))
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (3, 3, 3)


def test_an_endpoint_of_ones_own_reaches_every_pod_that_opens_the_store() -> None:
    for _, template in pods(FULL):
        env = {e["name"]: e.get("value") for c in template["spec"]["containers"] for e in c.get("env", ())}
        if template["metadata"]["labels"]["part"] in ("head", "worker", "metrics"):
            assert (env["MICLIP_STORE"], env["AWS_ENDPOINT_URL"]) == ("s3://b-1/lake", "http://s3.example.org:9000")
