-- What a unit is called, by every method
-- One row per name of a neuron or an SAE feature: concepts by method, labels that it tells, and sentences. Scores of one
-- method compare with each other only: its own, AUROC for labels, IoU for sentences.
-- :unit int -- number of the channel or feature
-- :model text = '%' -- models, as a pattern
-- :site text = '%' -- sites, as a pattern
-- :sae text = '%' -- SAEs, as a pattern; '' for neurons alone
-- :most int = 3 -- names by one method, at most
-- optional: unit_concepts, sae_selectivity, explanations, explanation_scores
WITH scored AS (
  SELECT sae, feature, vlm, method, masking, direction, positions, alpha_asked, alpha_unit, sequence, text, max(iou) AS iou
  FROM explanation_scores
  GROUP BY sae, feature, vlm, method, masking, direction, positions, alpha_asked, alpha_unit, sequence, text
), names AS (
  SELECT model, site, coalesce(sae, '') AS sae, unit, 'concept' AS source, variant AS method, concept AS name, rank,
         CAST(score AS DOUBLE) AS score
  FROM unit_concepts
  WHERE direction = 'describe' AND NOT is_dead
  UNION ALL
  SELECT model, site, sae, feature AS unit, 'label' AS source, level AS method, concept AS name, rank_in_feature AS rank, auroc AS score
  FROM sae_selectivity
  WHERE rank_in_feature IS NOT NULL
  UNION ALL
  SELECT e.model, e.site, e.sae, e.feature AS unit, 'sentence' AS source, e.method, e.text AS name, e.sequence AS rank, s.iou AS score
  FROM explanations AS e
  LEFT JOIN scored AS s
    ON e.sae = s.sae AND e.feature = s.feature AND e.vlm = s.vlm AND e.method = s.method AND e.masking = s.masking
       AND e.direction = s.direction AND e.positions = s.positions AND e.alpha_asked = s.alpha_asked
       AND e.alpha_unit = s.alpha_unit AND e.sequence = s.sequence AND e.text = s.text
  WHERE e.status = 'ok' AND e.direction = 'sae'
)
SELECT DISTINCT model, site, sae, unit, source, method, rank, name, score
FROM names
WHERE unit = :unit AND rank < :most AND model LIKE :model AND site LIKE :site AND sae LIKE :sae
ORDER BY model, site, sae, source, method, rank, score DESC NULLS LAST, name
