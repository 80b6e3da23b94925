"""Descriptions of units and units of concepts: images are seen in shards, then concepts are scored, by each of several methods."""
