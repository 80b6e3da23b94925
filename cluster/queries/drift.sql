-- What moved since the run before
-- One row per figure, concept or feature that is not as it was, or that differs between two models; the largest changes of each
-- kind first.
-- :aspect text = '%' -- metric, concept or feature, as a pattern
-- :subject text = '%' -- models, pairs of models or zoos, as a pattern
-- :most int = 100 -- rows, at most
SELECT aspect, cell, subject, subject_before, source, item, setting, status, before, after, after - before AS difference,
       feature_before, feature_after, similarity
FROM drift
WHERE aspect LIKE :aspect AND subject LIKE :subject
ORDER BY aspect, abs(after - before) DESC NULLS LAST, cell, subject, item, setting, status, feature_before NULLS LAST
LIMIT :most
