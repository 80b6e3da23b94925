"""Buckets: made once, with rules that never touch what a reader can see."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.session import get_session

from infra.bucket import lifecycle, make_bucket, ranges_for, readable
from infra.values import Pages
from tests.servers import CREDENTIALS, moto


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-3"])
def test_a_bucket_is_made_once_with_its_rules(
    url: str, credentials: None, monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    client = get_session().create_client("s3", region_name=region)
    for _ in range(2):
        make_bucket(f"s3://lake-{region}/below/it")
        assert client.get_bucket_lifecycle_configuration(Bucket=f"lake-{region}")["Rules"] == lifecycle()["Rules"]


def test_pages_of_one_origin_may_read_ranges(url: str, credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = get_session().create_client("s3", region_name="us-east-1")
    make_bucket("s3://lake-read", origin="https://pages.example.org")
    assert (
        client.get_bucket_cors(Bucket="lake-read")["CORSRules"] == ranges_for("https://pages.example.org")["CORSRules"]
    )
    (rule,) = ranges_for("https://pages.example.org")["CORSRules"]
    assert "Range" in rule["AllowedHeaders"] and "Content-Range" in rule["ExposeHeaders"]


PRIVATE, PUBLIC, VPC = ("10.0.0.0/8", "172.16.5.0/24"), ("192.0.2.0/24",), "vpc-0123456789abcdef0"
PAGES = Pages(to="s3://lake-shown/pages", readers=(*PRIVATE, *PUBLIC), vpcs=(VPC,))


def test_readers_may_get_pages_and_nothing_else_of_the_bucket(
    url: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    policy = readable(PAGES)
    assert {(rule["Action"], rule["Resource"]) for rule in policy["Statement"]} == {
        ("s3:GetObject", "arn:aws:s3:::lake-shown/pages/*")
    }
    make_bucket("s3://lake-shown")
    client = get_session().create_client("s3", region_name="us-east-1")
    client.put_bucket_policy(Bucket="lake-shown", Policy=json.dumps(policy))


def test_private_addresses_are_those_of_the_named_vpc_alone() -> None:
    """AWS knows `aws:SourceIp` of public addresses alone, and `aws:VpcSourceIp` is the same in any stranger's VPC."""
    public, private = (rule["Condition"] for rule in readable(PAGES)["Statement"])
    assert public == {"IpAddress": {"aws:SourceIp": list(PUBLIC)}}
    assert private == {"IpAddress": {"aws:VpcSourceIp": list(PRIVATE)}, "StringEquals": {"aws:SourceVpc": [VPC]}}
    (alone,) = readable(PAGES.model_copy(update={"readers": PRIVATE}))["Statement"]
    assert alone["Condition"] == private
    (elsewhere,) = readable(PAGES, on_aws=False)["Statement"]
    assert elsewhere["Condition"] == {"IpAddress": {"aws:SourceIp": [*PRIVATE, *PUBLIC]}}


def test_no_rule_removes_an_object_that_a_reader_can_see() -> None:
    for rule in lifecycle()["Rules"]:
        assert set(rule.get("Expiration", {})) <= {"ExpiredObjectDeleteMarker"}
        assert "Transitions" not in rule, "nor moves it where reading costs hours"
    assert "Days" not in json.dumps(lifecycle()).replace("DaysAfterInitiation", "").replace("NoncurrentDays", "")


def test_a_service_that_does_not_come_up_is_waited_for_and_then_named(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(EndpointConnectionError, match="Could not connect"):
            make_bucket("s3://lake", patience_s=0.0)
