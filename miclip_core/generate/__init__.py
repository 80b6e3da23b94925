"""Models that draw images: latents from seeds, images and maps that can be differentiated, and sets of generated images."""
