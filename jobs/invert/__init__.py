"""Latents of a generator: for images that it did not draw, guided by units that it shares with other models, and for edited maps."""
