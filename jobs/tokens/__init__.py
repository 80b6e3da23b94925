"""Activations as a stream of shuffled batches: the order, the sources, and the members of a gang that share the work."""
