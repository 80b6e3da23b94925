-- What changing a method's units does to accuracy
-- One row per change of the units that a method found for each class: points of accuracy that their own class gains or loses, and
-- the same of all other classes.
-- :op text = '%' -- scale or add, as a pattern
-- :model text = '%' -- models, as a pattern
SELECT model, site, unit_kind, coalesce(sae, '') AS sae, variant, seed, op, beta, error_mode, acc_ref, dacc, dacc_low, dacc_high,
       p_value, offclass_dacc
FROM intervention_summary
WHERE op LIKE :op AND model LIKE :model
ORDER BY model, site, unit_kind, sae, op, beta, error_mode, dacc, variant, seed NULLS FIRST, stage
