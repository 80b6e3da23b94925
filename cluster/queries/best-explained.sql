-- Features with the best sentences
-- One row per SAE feature: the sentence chosen for it, its scores, and the feature's first image.
-- :model text = '%' -- models, as a pattern
-- :vote text = '%' -- how images were shown: masks, heatmaps or none, as a pattern
-- :least float = 0 -- IoU, at least
-- :most int = 50 -- rows, at most
-- optional: sae_top_images
WITH covers AS (
  SELECT sae, feature, min(uri) AS uri
  FROM sae_top_images
  WHERE rank = 0
  GROUP BY sae, feature
)
SELECT s.model, s.site, s.sae, s.feature, s.text, s.method, s.vote, s.iou, s.clip, s.synthetic, s.passed, c.uri
FROM selected_explanations AS s
LEFT JOIN covers AS c ON s.sae = c.sae AND s.feature = c.feature
WHERE s.iou >= :least AND s.vote LIKE :vote AND s.model LIKE :model
ORDER BY s.iou DESC, s.sae, s.feature, s.vote
LIMIT :most
