-- What was wrong with images that were set aside
-- One row per reason, with one image of it.
SELECT reason, count(*) AS images, min(uri) AS one_of_them, min(detail) AS found
FROM bad_inputs
GROUP BY reason
ORDER BY images DESC, reason
