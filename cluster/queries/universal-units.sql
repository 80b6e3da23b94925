-- Units that other models have too
-- One row per unit with buddies in other models of a zoo, those with most first, and what the first method calls it.
-- :least int = 1 -- other models in which it has a buddy, at least
-- :model text = '%' -- models, as a pattern
-- :k int = 1 -- buddies are among the k nearest of each other
-- :method text = '%' -- methods that may name it, as a pattern
-- :most int = 50 -- rows, at most
-- optional: unit_concepts
WITH zoos AS (
  SELECT DISTINCT stage, subject AS zoo
  FROM stages
), shared AS (
  SELECT stage, model, site, coalesce(sae, '') AS sae, unit, degree, models, best_r
  FROM rosetta_universality
  WHERE k = :k AND degree >= :least AND model LIKE :model
), named AS (
  SELECT model, site, coalesce(sae, '') AS sae, unit, variant, concept,
         row_number() OVER (PARTITION BY model, site, sae, unit ORDER BY variant, seed NULLS FIRST, stage) AS place
  FROM unit_concepts
  WHERE direction = 'describe' AND rank = 0 AND NOT is_dead AND method LIKE :method
), first_names AS (
  SELECT model, site, sae, unit, variant, concept
  FROM named
  WHERE place = 1
)
SELECT z.zoo, u.model, u.site, u.sae, u.unit, u.degree, u.models, u.best_r, n.concept, n.variant
FROM shared AS u
JOIN zoos AS z ON u.stage = z.stage
LEFT JOIN first_names AS n ON u.model = n.model AND u.site = n.site AND u.sae = n.sae AND u.unit = n.unit
ORDER BY u.degree DESC, u.best_r DESC NULLS LAST, z.zoo, u.model, u.site, u.sae, u.unit
LIMIT :most
