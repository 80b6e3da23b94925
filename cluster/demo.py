"""The first run of a newcomer: export image files, run the demo spec over several models, ask three questions in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jobs.world import export_images

N_IMAGES = 2400

_UNITS = """\
For how many units of each layer do all of their 16 strongest images show one and the same concept?"""

_UNITS_QUERY = """\
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

_UNITS_READING = """\
No concept is in more than about 40 of 100 images, so chance would count one unit in a million."""

_FEATURES = """\
Which concepts has a sparse autoencoder found in the patches of the flagship, and how well does one feature tell each?"""

_FEATURES_QUERY = """\
SELECT split_part(concept, '=', 1) AS kind, count(DISTINCT concept) AS concepts,
       round(avg(best), 3) AS mean_auroc, round(min(best), 3) AS worst,
       arg_min(concept, best) AS hardest, 'feature ' || arg_max(feature, best) || ' is ' || arg_max(concept, best) AS example
FROM (SELECT concept, max(auroc) AS best, arg_max(feature, auroc) AS feature
      FROM sae_selectivity WHERE level = 'image' AND concept NOT LIKE 'label=%' GROUP BY concept)
WHERE kind IN ('colour', 'shape', 'texture', 'background')
GROUP BY kind ORDER BY mean_auroc DESC"""

_FEATURES_READING = """\
AUROC is the chance that an image that shows the concept drives the feature harder than one that does not: 0.5 is guessing."""


_NAMES = """\
What are those features called, by a method that sees no label, and how often is that what they respond to?"""

_NAMES_QUERY = """\
WITH truth AS (   -- what a feature tells best, if it tells it well
  SELECT sae, feature, split_part(concept, '=', 1) AS kind, split_part(concept, '=', 2) AS shows
  FROM sae_selectivity WHERE level = 'image' AND auroc >= 0.9 AND regexp_matches(concept, '^(shape|colour|texture|background)=')
  QUALIFY row_number() OVER (PARTITION BY sae, feature ORDER BY auroc DESC) = 1
)
SELECT u.variant AS method, count(*) AS features, round(avg((u.concept = t.shows)::int), 2) AS named_right,
       round(avg((u.concept = t.shows)::int) FILTER (t.kind = 'shape'), 2) AS shape,
       round(avg((u.concept = t.shows)::int) FILTER (t.kind = 'colour'), 2) AS colour,
       round(avg((u.concept = t.shows)::int) FILTER (t.kind = 'texture'), 2) AS texture,
       round(avg((u.concept = t.shows)::int) FILTER (t.kind = 'background'), 2) AS background,
       min('feature ' || u.unit || ' is called ' || u.concept) FILTER (u.concept = t.shows) AS example
FROM unit_concepts u JOIN truth t ON t.sae = u.sae AND t.feature = u.unit
WHERE u.direction = 'describe' AND u.rank = 0
GROUP BY ALL ORDER BY named_right DESC"""

_NAMES_READING = """\
There are 28 names to choose from, so chance is right once in 28. miclip reads the weights of the feature, clip_dissect its best images."""


_SHARED = """\
Which neurons do two models share, and do both of a pair answer to the same concept? (No label was used to find them.)"""

_SHARED_QUERY = """\
WITH shown AS (   -- what each image shows, a row per concept
  SELECT DISTINCT image_id, regexp_replace(e.key, '_[0-9]', '') AS kind, e.value AS concept
  FROM (SELECT image_id, unnest(map_entries(attributes)) AS e FROM images)
  WHERE kind IN ('colour', 'shape', 'texture', 'background')
), counted AS (   -- how many of its 16 strongest images show a concept
  SELECT model, site, unit, concept, count(*) AS n FROM top_images JOIN shown USING (image_id) GROUP BY ALL
), known AS (     -- units that are plainly about one
  SELECT model, site, unit, arg_max(concept, n) AS concept FROM counted GROUP BY ALL HAVING max(n) >= 14
)
SELECT b.model_a, b.model_b, count(*) AS buddies, round(median(b.r), 2) AS median_r, round(max(b.null_q999), 2) AS chance,
       count(*) FILTER (x.concept IS NOT NULL AND y.concept IS NOT NULL) AS both_known,
       count(*) FILTER (x.concept = y.concept) AS same_concept,
       arg_max('units ' || b.unit_a || ' and ' || b.unit_b || ': ' || x.concept, b.r) FILTER (x.concept = y.concept) AS example
FROM rosetta_buddies b
LEFT JOIN known x ON (x.model, x.site, x.unit) = (b.model_a, b.site_a, b.unit_a)
LEFT JOIN known y ON (y.model, y.site, y.unit) = (b.model_b, b.site_b, b.unit_b)
WHERE b.model_a <> b.model_b AND b.rank_ab = 0 AND b.rank_ba = 0 AND NOT b.is_below_null
GROUP BY ALL ORDER BY median_r DESC"""

_SHARED_READING = """\
Buddies are nearest to each other; r is over images and positions. Of two such units at random one pair in 12 to 20 has the same concept.
These models were trained on the same targets, so they share more than strangers would."""


_WORDS = """\
What do those features mean in a sentence? A language model is steered by one in the middle of an empty image, or shown what excites it."""

_WORDS_QUERY = """\
WITH truth AS (   -- what a feature tells best, if it tells it well
  SELECT sae, feature, split_part(concept, '=', 1) AS kind, split_part(concept, '=', 2) AS shows
  FROM sae_selectivity WHERE level = 'image' AND auroc >= 0.9 AND regexp_matches(concept, '^(shape|colour|texture|background)=')
  QUALIFY row_number() OVER (PARTITION BY sae, feature ORDER BY auroc DESC) = 1
), said AS (
  SELECT s.*, kind, regexp_matches(lower(s.text), '\\b' || shows || '\\b') AS has_word
  FROM explanation_scores s JOIN truth t ON (t.sae, t.feature) = (s.sae, s.feature)
)
SELECT method, if(direction = 'sae', '', direction || ' directions') AS control, count(*) AS features,
       round(avg(has_word::INT), 2) AS says_it, round(avg(has_word::INT) FILTER (kind <> 'background'), 2) AS of_objects, round(avg(iou), 2) AS iou,
       arg_max('feature ' || feature || ': ' || text, iou) FILTER (has_word AND kind <> 'background') AS example
FROM said GROUP BY ALL ORDER BY says_it DESC"""

_WORDS_READING = """\
says_it: the sentence has the word for what the feature tells best. iou: where the sentence is true and where the feature is active, in images
that no sentence was made from. A sentence of random directions is the control; a background in nine of 64 patches is none, so steering names
objects. Search by meaning: miclip search "a striped object"."""


class Asked(NamedTuple):
    """A question, the SQL that answers it, and how to read the answer."""

    question: str
    query: str
    reading: str


QUESTIONS = (
    Asked(_UNITS, _UNITS_QUERY, _UNITS_READING),
    Asked(_FEATURES, _FEATURES_QUERY, _FEATURES_READING),
    Asked(_NAMES, _NAMES_QUERY, _NAMES_READING),
    Asked(_SHARED, _SHARED_QUERY, _SHARED_READING),
    Asked(_WORDS, _WORDS_QUERY, _WORDS_READING),
)


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
    def report(self) -> Path:
        """The page that shows what was found."""
        return self.root / "report.html"

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
