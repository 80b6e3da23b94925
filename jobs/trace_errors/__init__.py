"""Errors layer by layer: how near images are to their true class and to the one they are mistaken for, by neuron encoders."""
