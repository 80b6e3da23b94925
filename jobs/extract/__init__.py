"""Activations of a model at many sites over one image set, and what is computed from them in the same forward pass."""
