"""Linear probes: predictions of classes from stored activations, for models that tell none themselves."""
