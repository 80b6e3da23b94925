"""Builds a model on the meta device and publishes what is known of it: family, sites, shapes, weights digest."""
