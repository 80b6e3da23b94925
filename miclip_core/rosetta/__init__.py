"""Rosetta neurons: units of different models that respond to the same places in the same images."""
