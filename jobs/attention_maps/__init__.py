"""Attention maps: where a class token looks when only the features of a concept are left in the patches."""
