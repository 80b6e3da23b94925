"""Makes a bucket and sets what it may forget: `python -m infra.bucket s3://lab-miclip`. Run again, it changes nothing."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

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


def make_bucket(uri: str, patience_s: float = 60.0) -> None:
    """Make the bucket of this store if it is not there, waiting for a service that is just starting, and set its rules.

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="s3://bucket, or s3://bucket/prefix")
    make_bucket(parser.parse_args().store)
    sys.stderr.write("bucket and lifecycle are there\n")
