"""Neuron encoders: one worker trains all variants of one site from published tables."""
