"""What the latents of a sparse autoencoder respond to: exact statistics of its codes, sorted by feature."""
