-- The models of the zoo
-- One row per inspected model: its family, its size, and what it gives.
-- :model text = '%' -- models, as a pattern
SELECT DISTINCT model, family, n_layers, width, embed_dim, pool, has_text, input_h, input_w, parameters, flops, revision
FROM models
WHERE model LIKE :model
ORDER BY model, parameters, revision NULLS LAST
