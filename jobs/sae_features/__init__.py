"""What the latents of SAEs respond to: codes sorted by feature, statistics, top images and selectivity."""
