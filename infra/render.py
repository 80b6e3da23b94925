"""From values to files: `python -m infra.render --values values.yaml --out DIR`; the defaults are kept in infra/rendered."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.yaml_text import write_yaml
from infra import bucket, manifests, monitoring
from infra.kuberay import to_plain
from infra.values import Values, read_values
from schemas.errors import BadSpec

HERE = Path(__file__).parent
DEFAULTS, RENDERED = HERE / "values.yaml", HERE / "rendered"
_MADE = "# Made by python -m infra.render; change the values, not this file.\n"


def render(values: Values, spec_text: str) -> dict[str, str]:
    """File name -> text of everything that the values decide."""
    return dict(_files(values, spec_text))


def _files(values: Values, spec_text: str) -> Iterator[tuple[str, str]]:
    objects = {
        "base": manifests.base(values, spec_text),
        "nightly": manifests.nightly(values),
        "nightly-by-operator": manifests.nightly_by_operator(values),
        "by-hand": manifests.by_hand(values),
        "standing-cluster": manifests.standing_cluster(values),
        "metrics": manifests.figures(values),
        "monitors": manifests.monitors(values),
    }
    for name, documents in objects.items():
        yield f"k8s/{name}.yaml", _MADE + "---\n".join(map(write_yaml, documents))
    yield "monitoring/alarms.yaml", _MADE + write_yaml(to_plain(monitoring.rules(values)))
    yield "monitoring/prometheus.yaml", _MADE + write_yaml(monitoring.prometheus(values))
    yield "monitoring/dashboard.json", monitoring.dashboard_text()
    yield "bucket-lifecycle.json", json.dumps(bucket.lifecycle(), indent=1) + "\n"
    if values.pages and values.pages.readers:
        yield (
            "pages-policy.json",
            json.dumps(bucket.readable(values.pages, on_aws=values.store.endpoint is None), indent=1) + "\n",
        )


def main(arguments: list[str] | None = None) -> int:
    """Write the files; 2 if the values are not valid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=Path, default=DEFAULTS)
    parser.add_argument("--out", type=Path, default=RENDERED)
    given: Any = parser.parse_args(arguments)
    try:
        files = render(*read_values(given.values))
    except (BadSpec, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for name, text in files.items():
        path = given.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.stderr.write(f"{len(files)} files in {given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
