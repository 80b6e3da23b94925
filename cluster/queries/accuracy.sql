-- How often each model is right
-- One row per model and stage: the share of labelled images whose first prediction is their label, and how sure it was.
-- Null where no such image's label is a class of the stage's predictions at any rank: there, its classes are other words.
-- :model text = '%' -- models, as a pattern
WITH labelled AS (
  SELECT image_id, min(label) AS label
  FROM images
  WHERE label IS NOT NULL
  GROUP BY image_id
), classes AS (
  SELECT DISTINCT stage, class_name
  FROM predictions
), judged AS (
  SELECT p.model, p.stage, CAST(p.probability AS DOUBLE) AS probability, CASE WHEN p.class_name = l.label THEN 1 ELSE 0 END AS is_right,
         CASE WHEN c.class_name IS NULL THEN 0 ELSE 1 END AS is_class
  FROM predictions AS p
  JOIN labelled AS l ON p.image_id = l.image_id
  LEFT JOIN classes AS c ON c.stage = p.stage AND c.class_name = l.label
  WHERE p.rank = 0 AND p.model LIKE :model
)
SELECT model, count(*) AS images, CASE WHEN max(is_class) = 1 THEN avg(is_right) END AS accuracy,
       avg(probability) AS mean_probability, stage
FROM judged
GROUP BY model, stage
ORDER BY accuracy DESC NULLS LAST, model, stage
