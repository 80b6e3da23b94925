"""The table that says how two runs, or two models of one run, differ; it lies in the folder of the later run."""

from __future__ import annotations

import pyarrow as pa

from schemas.columns import STAGE, Table, columns

DRIFT = Table(
    "drift",
    "one figure, concept or feature of something that differs from the run before, or between two models",
    columns(
        STAGE,
        ("cell", pa.string(), "stage of the pipeline, with its model if it is repeated for several"),
        ("subject", pa.string(), "model, pair of models, image set or zoo that it is about"),
        ("subject_before", pa.string(), "the same, or the other model where two are compared"),
        ("aspect", pa.string(), "metric, concept or feature"),
        ("source", pa.string(), "table that it was read from; weights for decoder rows"),
        (
            "item",
            pa.string(),
            "name of the metric, as its column; the concept; decoder_cosine or code_correlation of a feature",
        ),
        (
            "setting",
            pa.string(),
            "what tells it from others of this cell: site, SAE by its settings, method, measure and the like",
        ),
        (
            "status",
            pa.string(),
            "changed, gained or lost; of a feature matched (each is the other's nearest, at 0.7 or more) or lost",
        ),
        ("before?", pa.float64(), "value then; of a concept how many units it named; null where there was none"),
        ("after?", pa.float64(), "value now; likewise"),
        ("feature_before?", pa.int32(), "latent of the SAE then, 0-based"),
        ("feature_after?", pa.int32(), "the latent of the SAE now that is nearest to it"),
        (
            "similarity?",
            pa.float64(),
            "of those two: cosine of decoder rows, or correlation of codes over shared images",
        ),
    ),
)
