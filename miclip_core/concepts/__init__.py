"""Concepts as texts, which images show them, and which units and concepts score best for each other."""
