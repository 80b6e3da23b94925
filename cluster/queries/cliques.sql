-- Units of different models that are all buddies of each other
-- One row per unit of a clique, the largest and strongest cliques first, under the most neighbours that were counted.
-- :least int = 2 -- models in a clique, at least
-- :most int = 20 -- cliques of a zoo, at most
WITH zoos AS (
  SELECT DISTINCT stage, subject AS zoo
  FROM stages
), ranked AS (
  SELECT stage, k, clique, size, model, site, coalesce(sae, '') AS sae, unit, min_r, mean_r, max(k) OVER (PARTITION BY stage) AS most_k
  FROM rosetta_cliques
)
SELECT z.zoo, r.clique, r.size, r.min_r, r.mean_r, r.model, r.site, r.sae, r.unit
FROM ranked AS r
JOIN zoos AS z ON r.stage = z.stage
WHERE r.k = r.most_k AND r.clique < :most AND r.size >= :least
ORDER BY z.zoo, r.stage, r.clique, r.model, r.site, r.sae, r.unit
