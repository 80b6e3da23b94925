"""The demo world: images whose every concept is known, and the small models trained on it."""
