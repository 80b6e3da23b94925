"""The evaluate worker: reads what methods say, embeds all texts once, and writes scores, tests and one row per unit and method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from jobs.evaluate.compared import Work, work_of
from jobs.evaluate.judge import Row, Texts, compare, rows_of
from jobs.evaluate.measures import Measure, change_measures, comparison_rows, description_measures, score_rows
from jobs.evaluate.truth import Said, read_said, read_truth
from jobs.files import open_planned
from jobs.models import notes_of_cut, open_model
from jobs.protocol import Inputs, Keep, Part, Setting
from jobs.threads import use_cpus
from miclip_core.evaluate.sentences import SentenceEncoder, TowerEncoder, load_sentence_encoder
from schemas.errors import NoTruth
from schemas.plans import Plan, Shard
from schemas.tables import TABLES


class EvaluateWorker:
    """Judges the methods of one model; `notes` says what could not be judged."""

    def __init__(self, setting: Setting) -> None:
        use_cpus(setting)
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._device = setting.device
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """All tables of every stage."""
        self.notes.clear()
        for plan in (self._plans[stage] for stage in stages):
            yield from self._judge(plan, inputs)

    def _judge(self, plan: Plan, inputs: Inputs) -> Iterator[Part]:
        params: Any = plan.stage.params
        work = work_of(plan)
        self.notes += [
            f"nothing says what {units} stand for, so they are not judged; read a describe stage that has method auroc for them"
            for units in work.unjudged
        ]
        measures: list[Measure] = []
        said = self._read(plan, work, inputs)
        texts = self._embed(plan, work, said, inputs)
        for group in said:
            judged = [(one, compare(one, texts)) for one in group]
            for one, found in judged:
                yield from _parts(plan, "description_eval", rows_of(one, found))
            measures += description_measures(judged)
        measures += sorted(change_measures(inputs, work.changed), key=lambda m: (m.units.key, m.name))
        yield from _parts(plan, "method_scores", score_rows(measures, params["random_seed"]))
        yield from _parts(plan, "method_tests", comparison_rows(measures, params["random_seed"]))

    def _read(self, plan: Plan, work: Work, inputs: Inputs) -> list[list[Said]]:
        """What the methods of every group say of the units that stand for something.

        Raises:
            NoTruth: no unit does, and nothing else is to be judged.
        """
        params: Any = plan.stage.params
        found, poor = [], []
        for group in work.groups:
            truth = read_truth(inputs, work, group, params["min_truth"])
            if len(truth.units):
                found.append(read_said(inputs, work, group, truth))
            else:
                poor.append(
                    f"{group.units} (the best {'is unknown' if truth.best is None else f'has {truth.best:.3f}'})"
                )
        self.notes += [f"no unit reaches AUROC {params['min_truth']} among {units}" for units in poor]
        if poor and not found and not work.changed:
            raise NoTruth(
                f"no unit of {plan.stage.subject} reaches min_truth {params['min_truth']} for any concept: {', '.join(poor)}; "
                "lower min_truth, or describe other units or concepts with method auroc"
            )
        return found

    def _embed(self, plan: Plan, work: Work, said: Sequence[Sequence[Said]], inputs: Inputs) -> Texts:
        every = [one for group in said for one in group]
        texts = [name for one in every for name in (*one.names, *one.truth.names) if name is not None]
        return Texts(dict(self._encoders(plan, work, texts, inputs)) if texts else {}, texts)

    def _encoders(
        self, plan: Plan, work: Work, texts: Sequence[str], inputs: Inputs
    ) -> Iterator[tuple[str, SentenceEncoder]]:
        """The text tower of the CLIP, and a sentence encoder if one is named.

        Raises:
            WeightsMissing: either is not what it was when the run was planned.
            UnknownModel, MissingPackage: as `load_sentence_encoder`.
        """
        clip = open_model(work.clip, inputs, self._device, [])
        self.notes += notes_of_cut(clip, sorted(set(texts)))
        yield "clip", TowerEncoder("clip", clip.embed_text)
        if work.sentences is not None:
            folder = open_planned(inputs, work.sentences, str(plan.stage.params["sentences"]))
            yield "sentence", load_sentence_encoder(folder, self._device)


def _parts(plan: Plan, table: str, rows: Iterable[Row]) -> Iterator[Part]:
    full = [{"stage": plan.digest, "model": plan.stage.subject, **row} for row in rows]
    if full:
        yield Part(plan.digest, table, pa.RecordBatch.from_pylist(full, schema=TABLES[table].schema))


def open_worker(setting: Setting, inputs: Inputs) -> EvaluateWorker:
    """Nothing is loaded before there is work."""
    return EvaluateWorker(setting)
