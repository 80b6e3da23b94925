-- What is in the store
-- One row per kind of stage, model and table: how many stages have published how much.
-- :subject text = '%' -- models, pairs of models, zoos or image sets, as a pattern
SELECT kind, subject, table_name, count(*) AS stages, CAST(sum(rows) AS BIGINT) AS rows, CAST(sum(parts) AS BIGINT) AS parts,
       CAST(sum(bytes) AS BIGINT) AS bytes
FROM stages
WHERE subject LIKE :subject
GROUP BY kind, subject, table_name
ORDER BY kind, subject, table_name
