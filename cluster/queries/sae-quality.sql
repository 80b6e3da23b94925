-- How good the autoencoders are
-- One row per SAE: settings, and figures on images that training never saw; the best of each model and site first.
-- :model text = '%' -- models, as a pattern
-- :site text = '%' -- sites, as a pattern
SELECT model, site, arch, latents, k, fvu, l0, dead_fraction, recovered_mean, top1_original, top1_spliced, images, sae
FROM sae_summary
WHERE model LIKE :model AND site LIKE :site
ORDER BY model, site, fvu, sae
