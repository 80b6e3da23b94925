"""Image sets of every source, listed, read once and written down as the tables `images` and `bad_inputs`."""
