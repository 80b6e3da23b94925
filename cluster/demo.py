"""The first run of a newcomer: export image files, run the demo spec over several models, ask one question in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jobs.world import export_images
from schemas.specs import PipelineSpec

N_IMAGES = 2400

QUESTION = """\
For every model and layer: which units show one concept in nearly all of their top images?"""

QUERY = """\
WITH concept AS (            -- the truth of every image, one row per (image, kind of concept, value)
  SELECT image_id, e.key AS kind, e.value AS concept
  FROM images, UNNEST(map_entries(attributes)) AS t(e)
  WHERE duplicate_of IS NULL AND e.key IN ('shape', 'colour', 'texture', 'background') AND attributes['objects'] = '1'
), purity AS (               -- how much of a unit's top images agree on one value
  SELECT model, site, unit, kind, concept, count(*) AS agreeing,
         count(*) / sum(count(*)) OVER (PARTITION BY model, site, unit, kind) AS purity,
         sum(count(*)) OVER (PARTITION BY model, site, unit, kind) AS images_seen
  FROM top_images JOIN concept USING (image_id) WHERE value > 0
  GROUP BY ALL
)
SELECT model, site, kind, count(DISTINCT unit) AS units_with_a_concept, mode(concept) AS most_common
FROM purity WHERE purity >= 0.9 AND images_seen >= 8
GROUP BY ALL ORDER BY model, site, kind"""


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo keeps its files."""

    root: Path

    @property
    def world(self) -> Path:
        """Exported images, labels and masks."""
        return self.root / "world"

    @property
    def store(self) -> Path:
        """The store with the published tables."""
        return self.root / "store"

    @property
    def spec(self) -> Path:
        """The spec, as it is run."""
        return self.root / "demo.yaml"


def prepare(paths: DemoPaths, n_images: int = N_IMAGES) -> int:
    """Export the images and write the spec with their folder filled in; returns how many images were new."""
    written = export_images(paths.world.resolve(), n_images)
    text = (files("jobs") / "examples" / "demo.yaml").read_text()
    text = text.replace("WORLD", str(paths.world.resolve())).replace("STORE", str(paths.store.resolve()))
    if not paths.spec.exists() or paths.spec.read_text() != text:
        paths.spec.write_text(text)
    return written


def models_of(spec: PipelineSpec) -> tuple[str, ...]:
    """The zoo of the demo."""
    return spec.matrix.get("model", ())
