"""What kind of thing texts are about, by whoever labels; every distinct text is looked at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jobs.activations import Forward
from jobs.explained import Row
from jobs.models import open_vlm
from jobs.protocol import Artifact
from jobs.score_explanations.task import Task, explain_stages
from miclip_core.explain.labellers import AskedLabels, Labeller, WorldLabels
from schemas.base import canonical_json
from schemas.errors import KeyMissing
from schemas.plans import Plan, load_json

LABELS = "labels"
"""JSON of a shard: text -> [abstraction, context]."""


@dataclass(frozen=True)
class Labels:
    """Text -> its abstraction and context; nothing if nobody labels."""

    by_text: Mapping[str, tuple[str, str]]

    def of(self, text: str | None) -> Row:
        """The columns of one text."""
        abstraction, context = self.by_text.get(text or "", (None, None))
        return {"abstraction": abstraction, "context": context}


def results(task: Task) -> Iterator[Artifact]:
    """Labels of the texts about the features of a shard."""
    (plan,) = task.plans
    features = task.features(plan)
    texts = sorted({text.text for stage in explain_stages(plan) for text in task.texts(stage, features)})
    if texts:
        labeller: Labeller = task.hold("labeller", lambda: _open_labeller(task))
        labels = zip(labeller.abstraction(texts), labeller.context(texts), strict=True)
        yield Artifact(plan.digest, LABELS, json.dumps(dict(zip(texts, labels, strict=True))).encode())


def _open_labeller(task: Task) -> Labeller:
    if task.effort["labeller"] is None:
        return WorldLabels()
    forward: Forward = load_json(Forward, canonical_json(task.effort["labeller"]))
    return AskedLabels(open_vlm(forward, task.inputs, task.device))


def read_labels(task: Task, plan: Plan) -> Labels:
    """What all shards of the round before found."""
    found: dict[str, tuple[str, str]] = {}
    for shard in plan.shards(0) if len(plan.rounds) > 1 else ():
        try:
            data = task.inputs.artifact(plan.digest, shard.number, LABELS)
        except KeyMissing:
            continue
        found |= {text: (abstraction, context) for text, (abstraction, context) in json.loads(data).items()}
    return Labels(found)
