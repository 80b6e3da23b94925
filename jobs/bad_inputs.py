"""Images that are set aside at work, as rows of the table `bad_inputs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.pixels import Problem
from jobs.protocol import Part
from jobs.rows import SetAside, make_batch
from schemas.plans import Plan


def bad_inputs(plans: Sequence[Plan], problems: Sequence[Problem]) -> Iterator[Part]:
    """The same rows for every stage that these images were set aside for; nothing if there are none."""
    if not problems:
        return
    for plan in plans:
        columns = {
            "stage": plan.digest,
            "image_id": [p.image.image_id for p in problems],
            "image_index": [p.image.image_index for p in problems],
            "uri": [p.image.uri for p in problems],
            "reason": [p.reason for p in problems],
            "detail": [p.detail for p in problems],
        }
        yield Part(plan.digest, "bad_inputs", make_batch("bad_inputs", columns))


def nonfinite(aside: SetAside) -> list[Problem]:
    """Images whose values at a site cannot be stored or compared."""
    return [Problem(image, "nonfinite", aside.problem) for image in aside.images]
