"""Values of a deployment: every mistake is named with its place, and nothing secret is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.render import DEFAULTS, render
from infra.values import Values, read_values
from schemas.errors import BadSpec

SPEC = "kind: selftest\nname: night\n"


def read(folder: Path, *changes: tuple[str, str], spec: str = SPEC) -> tuple[Values, str]:
    text = DEFAULTS.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "first.yaml").write_text(spec)
    (folder / "values.yaml").write_text(text)
    return read_values(folder / "values.yaml")


def test_the_defaults_are_valid_and_name_a_valid_spec() -> None:
    values, spec = read_values(DEFAULTS)
    assert [group.gpus for group in values.workers] == [0, 1]
    assert "demo:clip-p8" in spec


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cron: ", "corn: ", "values.yaml:14:3  schedule.corn: unknown field; did you mean"),
        ('"0 1 * * *"', "nightly", 'schedule.cron: found "nightly", expected five fields of cron'),
        ("gpus: 1", 'gpus: "1"', 'workers.1.gpus: found "1", expected'),
        ("count: 2", "count: 0", "workers.0.count: found 0"),
        ("name: gpu", "name: cpu", "two groups of workers are called 'cpu'"),
        ("s3://lab-miclip/lake", "/data/lake", 'store.uri: found "/data/lake", expected s3://bucket'),
        ("name: gpu", "name: GPU", 'workers.1.name: found "GPU", expected small letters'),
        ("time_zone: Etc/UTC", "new_clusters: 9", "schedule.new_clusters: found 9"),
        ("to: s3://lab-miclip/pages", "to: pages", 'pages.to: found "pages", expected s3://bucket'),
        ("  secret: miclip-store", "  secret: x\n  role_of: machine", "are two ways to the store; leave one out"),
        ("  vpcs: [vpc-0123456789abcdef0]\n", "", "pages.readers: 10.0.0.0/8 is private"),
        ("vpc-0123456789abcdef0", "lab", 'pages.vpcs.0: found "lab", expected the id of a VPC'),
        ("10.0.0.0/8", "10.0.0.0/33", 'pages.readers.1: found "10.0.0.0/33", expected addresses such as'),
        ("first.yaml", "other.yaml", "is no file; expected the spec of the night"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(BadSpec) as error:
        read(tmp_path, (old, new))
    assert said in str(error.value)


def test_a_key_is_refused_where_a_name_belongs_and_not_shown(tmp_path: Path) -> None:
    key = "AKIA" + "Q" * 16
    with pytest.raises(BadSpec, match=r"values.yaml:8:3  this looks like a credential") as error:
        read(tmp_path, ("secret: miclip-store", f"secret: {key}"))
    assert key not in str(error.value)


def test_a_spec_that_is_wrong_or_has_a_store_of_its_own_is_refused_before_the_night(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"first.yaml:1:1 .* did you mean 'selftest'"):
        read(tmp_path, spec="kind: selfteste\nname: night\n")
    with pytest.raises(BadSpec, match="it names a store"):
        read(tmp_path, spec=SPEC + "store: s3://other/lake\n")


def test_a_service_of_its_own_sees_private_addresses_without_a_vpc(tmp_path: Path) -> None:
    own = ("  secret: miclip-store", "  secret: miclip-store\n  endpoint: http://s3.example.org:9000")
    values, spec = read(tmp_path, own, ("  vpcs: [vpc-0123456789abcdef0]\n", ""))
    assert "Vpc" not in render(values, spec)["pages-policy.json"]
