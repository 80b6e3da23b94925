-- The images that drive a unit most
-- One row per image, the strongest first, of a neuron (channel of a site) or an SAE feature.
-- :unit int -- number of the channel or feature
-- :model text = '%' -- models, as a pattern
-- :site text = '%' -- sites, as a pattern
-- :sae text = '%' -- SAEs, as a pattern; '' for neurons alone
-- :most int = 10 -- images of a unit, at most
-- optional: images, top_images, sae_top_images
WITH placed AS (
  SELECT image_id, min(uri) AS uri
  FROM images
  GROUP BY image_id
), neurons AS (
  SELECT t.model, t.site, '' AS sae, t.unit, t.rank, t.value, t.token, p.uri, t.image_id, t.stage
  FROM top_images AS t
  LEFT JOIN placed AS p ON t.image_id = p.image_id
), features AS (
  SELECT model, site, sae, feature AS unit, rank, value, token, uri, image_id, stage
  FROM sae_top_images
), shown AS (
  SELECT model, site, sae, unit, rank, value, token, uri, image_id, stage FROM neurons
  UNION ALL
  SELECT model, site, sae, unit, rank, value, token, uri, image_id, stage FROM features
)
SELECT model, site, sae, unit, rank, value, token, uri, image_id
FROM shown
WHERE unit = :unit AND rank < :most AND model LIKE :model AND site LIKE :site AND sae LIKE :sae
ORDER BY model, site, sae, stage, rank
