-- Units of the whole zoo that stand for a concept
-- One row per unit and reason: a method says that it is among the best units of the concept, its codes tell the label, or a
-- sentence about it has the word, where one begins: red finds dark red, colour=red and reddish, not checkered. What is said
-- in exactly these words comes first. Ranks count from 0; scores compare within one model and method only.
-- :concept text -- how the concept, the label or a word in them begins; capitals or not
-- :model text = '%' -- models, as a pattern
-- :most int = 5 -- units by one method for each concept, at most
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
), said AS (
  SELECT DISTINCT model, site, sae, unit, source, method, rank, says, score, lower(says) AS words,
         ' ' || replace(replace(replace(lower(says), '=', ' '), '-', ' '), '_', ' ') AS spaced
  FROM found
  WHERE rank < :most AND model LIKE :model
), matched AS (
  SELECT model, site, sae, unit, source, method, rank, says, score, CASE WHEN words = lower(:concept) THEN 0 ELSE 1 END AS is_part
  FROM said
  WHERE replace(spaced, ' ' || replace(replace(replace(lower(:concept), '=', ' '), '-', ' '), '_', ' '), '') <> spaced
)
SELECT model, site, sae, unit, source, method, rank, says, score
FROM matched
ORDER BY is_part, model, site, sae, source, method, says, rank, score DESC NULLS LAST, unit
