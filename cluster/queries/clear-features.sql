-- Features whose images are most alike
-- One row per SAE feature: how much more alike its top images are than random ones (in standard deviations), the label that it
-- tells best, and its first image.
-- :model text = '%' -- models, as a pattern
-- :least int = 20 -- images on which it is active, at least
-- :most int = 50 -- rows, at most
-- optional: sae_selectivity, sae_top_images
WITH labels AS (
  SELECT stage, feature, concept, auroc
  FROM sae_selectivity
  WHERE level = 'image' AND rank_in_feature = 0
), covers AS (
  SELECT stage, feature, uri
  FROM sae_top_images
  WHERE rank = 0
)
SELECT f.model, f.site, f.sae, f.feature, f.clarity_z, f.monosemanticity, f.images_active, l.concept, l.auroc, c.uri
FROM sae_features AS f
LEFT JOIN labels AS l ON f.stage = l.stage AND f.feature = l.feature
LEFT JOIN covers AS c ON f.stage = c.stage AND f.feature = c.feature
WHERE f.clarity_z IS NOT NULL AND f.images_active >= :least AND f.model LIKE :model
ORDER BY f.clarity_z DESC, f.sae, f.feature
LIMIT :most
