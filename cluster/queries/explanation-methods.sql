-- Ways to explain features in sentences, compared
-- One row per way and measure, over all features that were scored, with its 95 % interval; controls included.
-- :metric text = '%' -- measures: iou, clip, synthetic, auroc_macro, named and others, as a pattern
-- :model text = '%' -- models, as a pattern
SELECT model, site, sae, vlm, metric, method, masking, direction, positions, alpha_asked, alpha_unit, value, low, high, n, n_empty
FROM explanation_summary
WHERE metric LIKE :metric AND model LIKE :model
ORDER BY sae, vlm, metric, value DESC NULLS LAST, method, masking, direction, positions, alpha_asked, alpha_unit, stage
