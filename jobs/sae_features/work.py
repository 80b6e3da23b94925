"""The sae_features worker: SAEs and a source of tokens opened once; tokens are read once for all SAEs of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from jobs.blame import blaming
from jobs.models import open_model
from jobs.protocol import Artifact, Inputs, Keep, Part, Setting
from jobs.sae_features.describe import Bucket, rank
from jobs.sae_features.encode import Encoder, live_embeddings, stored_embeddings, uris_of
from jobs.sae_features.plan import EMBEDDING, READ_IMAGES
from jobs.sae_files import WEIGHTS
from jobs.sae_tokens import tokens_of
from jobs.threads import use_cpus
from jobs.tokens.blocks import row_blocks
from jobs.tokens.sources import LiveSource, Source, TableSource, TokenRows
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from schemas.errors import BadSae, BadTokens, ThresholdUnset
from schemas.plans import Plan, Shard


class FeaturesWorker:
    """Serves the SAEs of one model; `notes` says what people should know, such as a batch that was halved."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._saes: dict[str, Sae] = {}
        self._source: Source | None = None
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part | Artifact]:
        """Codes of a range of images, or all about a bucket of features, or the ranks of features and concepts."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        match plans[0].rounds[shard.round].name:
            case "map":
                yield from self._map(plans, shard, inputs)
            case "merge":
                for plan in plans:
                    yield from Bucket(plan, self._get_sae(plan, inputs), shard.start, inputs).results()
            case _:
                for plan in plans:
                    yield from rank(plan, inputs)

    def _map(self, plans: Sequence[Plan], shard: Shard, inputs: Inputs) -> Iterator[Artifact]:
        encoders = {plan.digest: Encoder(plan, self._get_sae(plan, inputs)) for plan in plans}
        widest = max(self._get_sae(plan, inputs).config.d for plan in plans)
        sites = list(dict.fromkeys(str(plan.stage.params["site"]) for plan in plans))
        has_live = self._has_live_embeddings()
        embeddings: dict[int, np.ndarray] = {}
        for found in self._read(shard, plans, widest, [*sites, EMBEDDING] if has_live else sites, inputs):
            if has_live:
                embeddings.update(live_embeddings(found[EMBEDDING]))
            for plan in plans:
                with _named(plan):
                    encoders[plan.digest].add(found[str(plan.stage.params["site"])])
        uris = uris_of(inputs, plans[0].stage.inputs["labels"], shard.start, shard.stop)
        for plan in plans:
            stage = plan.stage.inputs.get("embeddings")
            vectors: Mapping[int, np.ndarray] | None = embeddings
            if not has_live:
                vectors = stored_embeddings(inputs, stage, shard.start, shard.stop) if stage else None
            yield from encoders.pop(plan.digest).results(vectors, uris)

    def _read(
        self, shard: Shard, plans: Sequence[Plan], widest: int, sites: Sequence[str], inputs: Inputs
    ) -> Iterator[dict[str, TokenRows]]:
        """The tokens of a shard, READ_IMAGES images after another; as many of them are asked for at once as fit."""
        per_image = widest * max(int(plan.stage.params["positions"]) for plan in plans)  # type: ignore[arg-type]
        for ranges in row_blocks(shard, READ_IMAGES, per_image):
            yield from self._get_source(inputs).read(ranges, sites)

    def _has_live_embeddings(self) -> bool:
        first = self._setting.plans[0]
        return not tokens_of(first).stored and "embeddings" in first.stage.inputs

    def _get_sae(self, plan: Plan, inputs: Inputs) -> Sae:
        stage = plan.stage.inputs["sae"]
        if stage not in self._saes:
            with _named(plan):
                self._saes[stage] = load_sae(inputs.published(stage, WEIGHTS)).to(self._setting.device)
        return self._saes[stage]

    def _get_source(self, inputs: Inputs) -> Source:
        """The tokens of all SAEs; the model is loaded when the first tokens are asked for, which merging never does."""
        if self._source is None:
            tokens = list({t.site: t for t in map(tokens_of, self._setting.plans)}.values())
            if tokens[0].stored:
                self._source = TableSource(inputs, tokens)
            else:
                model = open_model(tokens[0].forward, inputs, self._setting.device, [t.site for t in tokens])
                if self._has_live_embeddings():
                    tokens.append(tokens[0].model_copy(update={"site": EMBEDDING}))
                source = LiveSource(model, inputs, tokens, self._setting.resources.decode_threads)
                self.notes = source.notes
                self._source = source
        return self._source


@contextmanager
def _named(plan: Plan) -> Iterator[None]:
    """Say which SAE an error is about; the others of the model are described without it."""
    with blaming(plan):
        try:
            yield
        except (BadSae, BadTokens, ThresholdUnset) as error:
            raise type(error)(f"sae:{plan.stage.inputs['sae']} at {plan.stage.params['site']}: {error}") from error


def open_worker(setting: Setting, inputs: Inputs) -> FeaturesWorker:
    """Nothing is loaded before a shard needs it."""
    return FeaturesWorker(setting, inputs)
