"""The features that were explained in words: whose, by which model, in which ways, and which stages scored and mapped the texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.report.data import ReportData
from cluster.report.sections.places import Place, PlaceNames
from cluster.report.sections.settings import Settings
from cluster.report.sections.ways import Ways
from jobs.explained import Variant, variant_of
from schemas.plans import StageSpec


@dataclass(frozen=True)
class Explained:
    """The features of one SAE as one vision-language model explains them.

    stages: the stage of every way. summary: digest of the stage that scored them; None if nobody did. title: what tells it
    from the others.
    """

    number: int
    place: Place
    vlm: str
    title: str
    stages: dict[Variant, str]
    summary: str | None
    shown: str | None
    """The sae_features stage whose top images were shown."""
    scored_on: str | None
    """The sae_features stage over the images that texts were scored on."""

    @property
    def ways(self) -> Ways:
        """All of its ways."""
        return Ways(self.stages)


def load_explained(data: ReportData) -> list[Explained]:
    """By model, site, SAE and vision-language model; of several summaries of the same texts each is one of its own."""
    stages = [published.stage for published in data.stages.values()]
    texts = [s for s in stages if (s.kind, s.output) == ("explain", "explanations")]
    summaries = [s for s in stages if (s.kind, s.output) == ("score_explanations", "summary")]
    by_model: dict[tuple[Place, str], list[StageSpec]] = defaultdict(list)
    for stage in sorted(texts, key=lambda s: s.digest):
        by_model[_place(stage), str(stage.params["vlm"])].append(stage)
    found: list[tuple[Place, str, list[StageSpec], StageSpec | None]] = []
    for (place, vlm), own in sorted(by_model.items(), key=lambda item: (item[0][0].key, item[0][1])):
        digests = {stage.digest for stage in own}
        scored = [s for s in summaries if digests & set(s.inputs.values())]
        scored.sort(key=lambda s: s.digest)
        found += [(place, vlm, own, summary) for summary in scored] or [(place, vlm, own, None)]
    titles = _titles(data, [(place, vlm, summary) for place, vlm, _, summary in found])
    return [_explained(n, *one, title) for n, (one, title) in enumerate(zip(found, titles, strict=True))]


def _place(stage: StageSpec) -> Place:
    return Place(stage.subject, str(stage.params["site"]), f"sae:{stage.inputs['sae']}")


def _explained(
    number: int, place: Place, vlm: str, texts: Iterable[StageSpec], summary: StageSpec | None, title: str
) -> Explained:
    """Of two stages for the same way, that differ in a setting with no column, the one that was scored."""
    read = set(summary.inputs.values()) if summary else set()
    ranked = sorted(texts, key=lambda stage: (stage.digest not in read, stage.digest))
    stages: dict[Variant, str] = {}
    for stage in ranked:
        stages.setdefault(variant_of(stage), stage.digest)
    shown = next((stage.inputs.get("features") for stage in ranked), None)
    scored_on = summary.inputs.get("features") if summary else None
    return Explained(number, place, vlm, title, stages, summary.digest if summary else None, shown, scored_on)


def _titles(data: ReportData, found: list[tuple[Place, str, StageSpec | None]]) -> list[str]:
    """The place; the model that wrote, and what tells summaries apart, where there are several."""
    names, settings = PlaceNames(data), Settings(data)
    several = len({vlm for _, vlm, _ in found}) > 1 or any(vlm != place.model for place, vlm, _ in found)
    alike: dict[tuple[Place, str], list[str]] = defaultdict(list)
    for place, vlm, summary in found:
        if summary:
            alike[place, vlm].append(summary.digest)
    told = {s: words for of in alike.values() for s, words in zip(of, settings.tell(of), strict=True)}
    titles = []
    for place, vlm, summary in found:
        words = [names.title(place), f"by {vlm}" if several else "", told.get(summary.digest, "") if summary else ""]
        titles.append(" · ".join(filter(None, words)))
    return titles
