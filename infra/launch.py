"""Runs inside a CronJob: creates tonight's RayJob, waits for its end, and ends as it did. Python's own library only.

Where another cluster may mend what went wrong it creates one more RayJob. The operator could do so by itself, but it looks
at no exit code: a model that cannot be loaded would cost a second cluster every night.

It is the CronJob that knows about time zones, late starts and nights that must not overlap; it can only wait for a pod,
so this pod lives as long as the RayJob. Both have one name: started again, it finds its RayJobs and waits on. A RayJob
belongs to the pod's Job, so that whoever deletes the one, or forgets it with the history, deletes the other.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAUSE_S = 15.0
PATIENCE_S = 600.0
"""So long the API server may be away before this pod gives up and is started again."""
FINAL_CODES = {1, 2, 130}
"""Of `miclip nightly`: part of it failed, the request is wrong, it was cancelled. All else may go better elsewhere."""
FINAL_REASONS = {"DeadlineExceeded"}
_EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")
"""As Ray tells of a driver that ended; the end of its log follows."""


class Ended(NamedTuple):
    """How a RayJob ended: an empty text if it succeeded, else why it did not, and whether another cluster may do better."""

    failure: str
    again: bool = False


class Api:
    """RayJobs of one namespace, as the service account of this pod may see them."""

    def __init__(self, url: str, account: Path = ACCOUNT) -> None:
        self._account = account
        namespace = (account / "namespace").read_text().strip()
        self._url = f"{url}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        authority = account / "ca.crt"
        self._tls = ssl.create_default_context(cafile=str(authority)) if url.startswith("https") else None

    def create(self, job: dict[str, Any]) -> None:
        """Create a RayJob, unless one of that name is there."""
        try:
            self._send("POST", "", job)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def get(self, name: str) -> dict[str, Any]:
        """The RayJob as it is now."""
        return self._send("GET", f"/{name}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        token = (self._account / "token").read_text().strip()  # it is replaced while the pod lives
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
            return json.load(answer)


def tonight(template: dict[str, Any], name: str, uid: str, number: int = 1) -> dict[str, Any]:
    """A RayJob of the Job that this pod belongs to; number: of the cluster, from 1."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    called = name if number == 1 else f"{name}-{number}"
    return {**template, "metadata": {**template["metadata"], "name": called, "ownerReferences": [owner]}}


def run_night(
    api: Api, template: dict[str, Any], name: str, uid: str, new_clusters: int, pause_s: float = PAUSE_S
) -> str:
    """One RayJob, and up to `new_clusters` more while another may do better; an empty text, or why the last one failed."""
    ended = Ended("")
    for number in range(1, new_clusters + 2):
        if number > 1:
            say(f"{ended.failure}\ncluster {number} of {new_clusters + 1}: what is done stays done")
        ended = run(api, tonight(template, name, uid, number), pause_s)
        if not ended.again:
            break
    return ended.failure


def run(api: Api, job: dict[str, Any], pause_s: float = PAUSE_S, patience_s: float = PATIENCE_S) -> Ended:
    """Create a RayJob and wait for its end."""
    name, created, answered, said = job["metadata"]["name"], False, time.monotonic(), ""
    while True:
        try:
            if not created:
                api.create(job)
                created = True
            status = api.get(name).get("status", {})
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                return Ended(f"the API server says {error.code}: {error.read().decode(errors='replace')}")
            if time.monotonic() - answered > patience_s:
                return Ended(f"the API server has not answered for {patience_s:.0f} s: {error}")
            say(f"the API server does not answer: {error}")
        else:
            answered = time.monotonic()
            state = status.get("jobDeploymentStatus", "")
            if state != said:
                said = state
                say(f"{name}: {state} {status.get('message', '')}")
            if state in ("Complete", "Failed", "ValidationFailed"):
                return _verdict(status)
        time.sleep(pause_s)


def _verdict(status: dict[str, Any]) -> Ended:
    """A job that somebody stopped is complete for the operator, and no success."""
    state = status["jobDeploymentStatus"]
    if state == "Complete" and status.get("jobStatus") == "SUCCEEDED":
        return Ended("")
    said = " ".join(["the night failed:", *filter(None, map(status.get, ("jobStatus", "reason", "message")))])
    code = _EXIT_CODE.search(status.get("message", ""))
    final = code is not None and int(code[1]) in FINAL_CODES
    return Ended(said, state == "Failed" and not final and status.get("reason") not in FINAL_REASONS)


def say(text: str) -> None:
    """A line in the pod's log, at once."""
    sys.stderr.write(text.rstrip() + "\n")
    sys.stderr.flush()


def main(template: Path, new_clusters: int) -> int:
    """Exit code 0 if the night succeeded, else 1."""
    api = Api(f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}")
    job = json.loads(template.read_text())
    failure = run_night(api, job, os.environ["JOB_NAME"], os.environ["JOB_UID"], new_clusters)
    if failure:
        say(failure)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
