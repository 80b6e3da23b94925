-- How often each model is right
-- One row per model and stage: the share of labelled images whose first prediction is their label, and how sure it was.
-- :model text = '%' -- models, as a pattern
WITH labelled AS (
  SELECT image_id, min(label) AS label
  FROM images
  WHERE label IS NOT NULL
  GROUP BY image_id
)
SELECT p.model, count(*) AS images, avg(CASE WHEN p.class_name = l.label THEN 1 ELSE 0 END) AS accuracy,
       avg(CAST(p.probability AS DOUBLE)) AS mean_probability, p.stage
FROM predictions AS p
JOIN labelled AS l ON p.image_id = l.image_id
WHERE p.rank = 0 AND p.model LIKE :model
GROUP BY p.model, p.stage
ORDER BY accuracy DESC, p.model, p.stage
