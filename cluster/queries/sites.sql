-- Which sites of which models have been worked on
-- One row per model, site and table that is published about it.
-- :model text = '%' -- models, as a pattern
-- :site text = '%' -- sites, as a pattern
SELECT subject AS model, site, kind, table_name, count(*) AS stages, CAST(sum(rows) AS BIGINT) AS rows
FROM stages
WHERE site IS NOT NULL AND subject LIKE :model AND site LIKE :site
GROUP BY subject, site, kind, table_name
ORDER BY model, site, kind, table_name
