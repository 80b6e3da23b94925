-- Images that most of the zoo gets wrong
-- One row per labelled image that some model gets wrong, with how many do; the hardest first. Every stage of predictions
-- counts, but those of which no labelled image has a class as its label: their classes are other words.
-- :least int = 1 -- mistakes, at least
-- :most int = 50 -- rows, at most
WITH labelled AS (
  SELECT image_id, min(label) AS label, min(uri) AS uri
  FROM images
  WHERE label IS NOT NULL
  GROUP BY image_id
), classes AS (
  SELECT DISTINCT stage, class_name
  FROM predictions
), comparable AS (
  SELECT DISTINCT p.stage
  FROM predictions AS p
  JOIN labelled AS l ON p.image_id = l.image_id
  JOIN classes AS c ON c.stage = p.stage AND c.class_name = l.label
), judged AS (
  SELECT l.label, l.uri, p.image_id, CASE WHEN p.class_name = l.label THEN 0 ELSE 1 END AS is_wrong
  FROM predictions AS p
  JOIN labelled AS l ON p.image_id = l.image_id
  JOIN comparable AS s ON s.stage = p.stage
  WHERE p.rank = 0
), counted AS (
  SELECT label, uri, image_id, CAST(sum(is_wrong) AS BIGINT) AS mistakes, count(*) AS predictions
  FROM judged
  GROUP BY label, uri, image_id
)
SELECT label, mistakes, predictions, uri, image_id
FROM counted
WHERE mistakes >= :least
ORDER BY mistakes DESC, predictions, image_id
LIMIT :most
