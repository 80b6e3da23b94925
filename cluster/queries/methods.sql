-- Methods that name units, compared
-- One row per model, site, measure and method: its value averaged over seeds, beside the most that could be reached.
-- :measure text = '%' -- measures, as a pattern
-- :model text = '%' -- models, as a pattern
SELECT model, site, unit_kind, coalesce(sae, '') AS sae, measure, variant, avg(value) AS value, max(ceiling) AS ceiling,
       count(*) AS seeds, min(n) AS n
FROM method_scores
WHERE value IS NOT NULL AND measure LIKE :measure AND model LIKE :model
GROUP BY stage, model, site, unit_kind, coalesce(sae, ''), measure, variant
ORDER BY model, site, unit_kind, sae, measure, value DESC, variant
