-- Where else in the zoo a unit is found
-- One row per buddy of a unit in another model that is above the null, the best first, and what the first method calls it.
-- :unit int -- number of the channel or feature
-- :model text -- its model
-- :site text = '%' -- its site, as a pattern
-- :sae text = '%' -- its SAE, as a pattern; '' for neurons alone
-- :method text = '%' -- methods that may name partners, as a pattern
-- optional: unit_concepts
WITH edges AS (
  SELECT model_a AS model, site_a AS site, coalesce(sae_a, '') AS sae, unit_a AS unit,
         model_b AS other, site_b AS other_site, coalesce(sae_b, '') AS other_sae, unit_b AS other_unit, r, place_r, null_q999
  FROM rosetta_buddies
  WHERE model_a <> model_b AND NOT is_below_null
  UNION ALL
  SELECT model_b AS model, site_b AS site, coalesce(sae_b, '') AS sae, unit_b AS unit,
         model_a AS other, site_a AS other_site, coalesce(sae_a, '') AS other_sae, unit_a AS other_unit, r, place_r, null_q999
  FROM rosetta_buddies
  WHERE model_a <> model_b AND NOT is_below_null
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
SELECT e.model, e.site, e.sae, e.unit, e.other, e.other_site, e.other_sae, e.other_unit, e.r, e.place_r, e.null_q999, n.concept, n.variant
FROM edges AS e
LEFT JOIN first_names AS n ON e.other = n.model AND e.other_site = n.site AND e.other_sae = n.sae AND e.other_unit = n.unit
WHERE e.unit = :unit AND e.model = :model AND e.site LIKE :site AND e.sae LIKE :sae
ORDER BY e.model, e.site, e.sae, e.r DESC, e.other, e.other_site, e.other_sae, e.other_unit
