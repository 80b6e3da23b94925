-- Units of the whole zoo that stand for a concept
-- One row per unit and reason: a method says that it is among the best units of the concept, its codes tell the label, or a
-- sentence about it has the word. Ranks count from 0; scores compare within one model and method only.
-- :concept text -- part of the concept, label or sentence, in small letters
-- :model text = '%' -- models, as a pattern
-- :most int = 5 -- units by one method, at most
-- optional: unit_concepts, sae_selectivity, selected_explanations
WITH found AS (
  SELECT model, site, coalesce(sae, '') AS sae, unit, 'concept' AS source, variant AS method, concept AS says, rank,
         CAST(score AS DOUBLE) AS score
  FROM unit_concepts
  WHERE direction = 'localise' AND NOT is_dead
  UNION ALL
  SELECT model, site, sae, feature AS unit, 'label' AS source, level AS method, concept AS says, rank_in_concept AS rank, auroc AS score
  FROM sae_selectivity
  WHERE rank_in_concept IS NOT NULL
  UNION ALL
  SELECT model, site, sae, feature AS unit, 'sentence' AS source, method, text AS says, 0 AS rank, iou AS score
  FROM selected_explanations
)
SELECT DISTINCT model, site, sae, unit, source, method, rank, says, score
FROM found
WHERE replace(lower(says), :concept, '') <> lower(says) AND rank < :most AND model LIKE :model
ORDER BY model, site, sae, source, method, says, rank, score DESC NULLS LAST, unit
