"""The first run of a newcomer: export image files, run the demo spec over several models, ask one question in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jobs.world import export_images

N_IMAGES = 2400

QUESTION = """\
For how many units of each layer do all of their 16 strongest images show one and the same concept?"""

QUERY = """\
WITH shown AS (   -- what each image shows, a row per concept; the images are drawn, so it is known
  SELECT DISTINCT image_id, regexp_replace(e.key, '_[0-9]', '') AS kind, e.value AS concept
  FROM (SELECT image_id, unnest(map_entries(attributes)) AS e FROM images)
  WHERE kind IN ('colour', 'shape', 'texture', 'background')
), pure AS (      -- units whose 16 strongest images all show the same concept
  SELECT model, site, unit, kind, concept FROM top_images JOIN shown USING (image_id)
  WHERE value > 0 GROUP BY ALL HAVING count(*) = 16
)
SELECT model, site, count(DISTINCT unit) AS units,
       count(DISTINCT unit) FILTER (kind = 'colour') AS colour,
       count(DISTINCT unit) FILTER (kind = 'shape') AS shape,
       count(DISTINCT unit) FILTER (kind = 'texture') AS texture,
       count(DISTINCT unit) FILTER (kind = 'background') AS background,
       min('unit ' || unit || ' shows ' || concept) AS example
FROM top_images LEFT JOIN pure USING (model, site, unit)
GROUP BY ALL ORDER BY ALL"""

READING = """\
No concept is in more than about 40 of 100 images, so chance would count one unit in a million."""


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
