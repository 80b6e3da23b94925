"""Texts about features as points: embeddings, clusters with topics, and two coordinates to draw them at."""
