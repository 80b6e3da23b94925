"""The explain worker: one vision-language model and one SAE; top images are read, rendered and run to the edited block once for all stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from jobs.blame import blaming
from jobs.explain.alphas import Trials, choose_alpha, chosen_alpha, find_overlaps, tries_of
from jobs.explain.asked import Asked
from jobs.explain.explainer import Explainer, Try
from jobs.explain.features import Batch, Images
from jobs.explain.plan import EXPLAIN, TRY
from jobs.explain.proof import check_tower
from jobs.explain.rows import Row, make_part, rows_of, rows_without
from jobs.latents import Feature, choose, choose_validation, read_features
from jobs.models import open_vlm
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.sae_files import WEIGHTS
from jobs.text_driven import IndexSegmenter
from jobs.threads import use_cpus
from miclip_core.sae.weights import load_sae
from schemas.plans import Shard


class ExplainWorker:
    """Serves the stages of one SAE and one model; `notes` says what people should know."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._features: dict[str, list[Feature]] = {}
        self._alphas: dict[str, float] = {}
        self._explainer: Explainer | None = None
        self._segmenter: IndexSegmenter | None = None
        self.notes: list[str] = []

    @torch.no_grad()
    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Texts about some features, what texts with each alpha are worth there, or the choice of an alpha."""
        self.notes.clear()
        several = [Asked(self._plans[stage]) for stage in stages]
        name = several[0].plan.rounds[shard.round].name
        if name == EXPLAIN:
            yield from self._explain(several, shard, inputs)
        elif name == TRY:
            yield from self._try(several, shard, inputs)
        else:
            for asked in several:
                with blaming(asked.plan):
                    yield choose_alpha(asked, inputs, self.notes)
        if self._explainer is not None:
            self.notes += self._explainer.take_notes()

    # -------------------------------------------------------------- rounds

    def _explain(self, several: Sequence[Asked], shard: Shard, inputs: Inputs) -> Iterator[Part]:
        features = self._of_shard(several[0], shard, inputs)
        if not features:
            return
        tries = [Try(asked, self._alpha(asked, inputs)) for asked in several]
        rows: dict[str, list[Row]] = defaultdict(list)
        for batch in self._batches([one for one in features if one.is_active], several, inputs):
            explainer = self._open(several[0], inputs)
            for one, written in explainer.write(tries, batch):
                norm = explainer.token_norm if one.asked.steers else None
                rows[one.asked.plan.digest] += rows_of(one, batch, written, norm)
        for one in tries:
            with blaming(one.asked.plan):
                own = rows[one.asked.plan.digest]
                there = {row["feature"] for row in own}
                own += [
                    row for feature in features if feature.number not in there for row in rows_without(one, feature)
                ]
                yield make_part(one.asked, own, self._validation(one.asked, inputs))

    def _try(self, several: Sequence[Asked], shard: Shard, inputs: Inputs) -> Iterator[Artifact]:
        trials = {asked.plan.digest: Trials(asked) for asked in several}
        tries = [one for asked in several for one in tries_of(asked)]
        for batch in self._batches(self._of_shard(several[0], shard, inputs), several, inputs):
            explainer = self._open(several[0], inputs)
            segmenter = self._open_segmenter(several[0], inputs)
            tried = [*explainer.write(tries, batch)]
            said = [text for one, written in tried for text in trials[one.asked.plan.digest].said(written)]
            overlaps = find_overlaps(batch, said, segmenter)
            for one, written in tried:
                trials[one.asked.plan.digest].add(one, batch, written, overlaps)
        yield from (found.packed() for found in trials.values())

    # -------------------------------------------------------------- features and alphas

    def _of_shard(self, asked: Asked, shard: Shard, inputs: Inputs) -> list[Feature]:
        features = self._all(asked, inputs)
        chosen = (
            choose_validation(features, asked.validation)
            if asked.compares_alphas
            else choose(features, *asked.features)
        )
        places = asked.places(shard, len(chosen))
        return chosen[places.start : places.stop]

    def _all(self, asked: Asked, inputs: Inputs) -> list[Feature]:
        stage = asked.plan.stage.inputs["features"]
        if stage not in self._features:
            self._features[stage] = read_features(inputs, stage)
        return self._features[stage]

    def _validation(self, asked: Asked, inputs: Inputs) -> set[int]:
        """Features on which the stage's alpha was chosen."""
        if not asked.is_auto:
            return set()
        return {one.number for one in choose_validation(self._all(asked, inputs), asked.validation)}

    def _alpha(self, asked: Asked, inputs: Inputs) -> float:
        digest = asked.plan.digest
        if digest not in self._alphas:
            with blaming(asked.plan):
                self._alphas[digest] = chosen_alpha(asked, inputs)
        return self._alphas[digest]

    def _batches(self, features: Sequence[Feature], several: Sequence[Asked], inputs: Inputs) -> Iterator[Batch]:
        """With as many images as any of the stages shows or scores, and without any if none does."""
        first = several[0]
        k = max(asked.images for asked in several)
        images = Images(inputs, first, k, self._setting.resources.decode_threads)
        yield from images.batches(features, first.batch)
        self.notes += images.notes

    # -------------------------------------------------------------- what is opened

    def _open(self, asked: Asked, inputs: Inputs) -> Explainer:
        """The model and the SAE; opened when there is a feature to explain."""
        if self._explainer is None:
            device = self._setting.device
            check_tower(asked.vlm, asked.forward, asked.site, inputs, device)
            vlm = open_vlm(asked.vlm, inputs, device)
            sae = load_sae(inputs.published(asked.plan.stage.inputs["sae"], WEIGHTS))
            threads = self._setting.resources.decode_threads
            self._explainer = Explainer(vlm, sae, asked, inputs, threads)
        return self._explainer

    def _open_segmenter(self, asked: Asked, inputs: Inputs) -> IndexSegmenter:
        """What alphas are scored with."""
        if self._segmenter is None:
            named, location = str(asked.params["segmenter"]), str(asked.plan.effort["segmenter"])
            self._segmenter = IndexSegmenter(inputs, named, location, self._setting.device)
        return self._segmenter


def open_worker(setting: Setting, inputs: Inputs) -> ExplainWorker:
    """Nothing is loaded before there is a feature to explain."""
    return ExplainWorker(setting, inputs)
