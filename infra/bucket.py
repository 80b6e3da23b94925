"""Makes buckets and sets what they may forget: `python -m infra.bucket s3://lab-miclip`. Run again, it changes nothing."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from infra.values import Pages, is_private

DAYS = 7
"""An upload in pieces that was begun so long ago and not ended belongs to a process that is dead."""


def lifecycle() -> dict[str, Any]:
    """Rules that remove what no reader can see; objects themselves are removed by `miclip gc` alone.

    Where a bucket keeps versions, those that `gc` or a replaced state left behind go after 30 days.
    """
    return {
        "Rules": [
            {
                "ID": "unfinished-uploads",
                "Status": "Enabled",
                "Filter": {"Prefix": ""},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": DAYS},
            },
            {
                "ID": "old-versions",
                "Status": "Enabled",
                "Filter": {"Prefix": ""},
                "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
                "Expiration": {"ExpiredObjectDeleteMarker": True},
            },
        ]
    }


def readable(pages: Pages, on_aws: bool = True) -> dict[str, Any]:
    """The policy of a bucket by which browsers at some addresses may read its pages, and nothing else of it.

    AWS sees private addresses only of requests by the endpoint of a VPC, and any VPC may have the same, so theirs is named.

    on_aws: another service sees every address as it is.
    """
    private = [addresses for addresses in pages.readers if on_aws and is_private(addresses)]
    public = [addresses for addresses in pages.readers if addresses not in private]
    by_vpc = {"IpAddress": {"aws:VpcSourceIp": private}, "StringEquals": {"aws:SourceVpc": list(pages.vpcs)}}
    ways = (("pages", public, {"IpAddress": {"aws:SourceIp": public}}), ("pagesByVpc", private, by_vpc))
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": name,
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{pages.to.removeprefix('s3://').rstrip('/')}/*",
                "Condition": condition,
            }
            for name, addresses, condition in ways
            if addresses
        ],
    }


def ranges_for(origin: str) -> dict[str, Any]:
    """Rules by which pages of another origin may read parts of this bucket where they are, by byte ranges (CORS).

    origin: scheme and host of the pages, as in https://pages.example.org.
    """
    rule = {
        "AllowedOrigins": [origin],
        "AllowedMethods": ["GET", "HEAD"],
        "AllowedHeaders": ["Range"],
        "ExposeHeaders": ["Content-Range", "Content-Length", "ETag"],
        "MaxAgeSeconds": 3600,
    }
    return {"CORSRules": [rule]}


def make_bucket(uri: str, patience_s: float = 60.0, origin: str | None = None) -> None:
    """Make the bucket of this store if it is not there, waiting for a service that is just starting, and set its rules.

    origin: pages there may read from it; what other pages might before is replaced.

    Credentials, region and endpoint come from the environment, as for all of miclip.

    Raises:
        botocore.exceptions.ClientError, EndpointConnectionError: the service refuses, or does not come up.
    """
    from botocore.exceptions import ClientError, EndpointConnectionError
    from botocore.session import get_session

    client = get_session().create_client("s3", region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    bucket, until = uri.removeprefix("s3://").partition("/")[0], time.monotonic() + patience_s
    region = client.meta.region_name
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    while True:
        try:
            client.create_bucket(Bucket=bucket, **place)
            break
        except ClientError as error:
            if error.response["Error"]["Code"] in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                break
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 or time.monotonic() > until:
                raise
        except EndpointConnectionError:
            if time.monotonic() > until:
                raise
        time.sleep(1.0)
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=lifecycle())
    if origin is not None:
        client.put_bucket_cors(Bucket=bucket, CORSConfiguration=ranges_for(origin))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+", metavar="STORE", help="s3://bucket, or s3://bucket/prefix")
    parser.add_argument("--origin", help="pages there may read parts from it, such as https://pages.example.org")
    given = parser.parse_args()
    for store in given.stores:
        make_bucket(store, origin=given.origin)
    sys.stderr.write("buckets and their rules are there\n")
