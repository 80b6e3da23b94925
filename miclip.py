"""Reads what miclip has published: `lake = miclip.open("/lake")`, then `lake.table("activations").torch()`."""

from cluster.read import Lake, LakeTable
from cluster.read import open_lake as open

__all__ = ["Lake", "LakeTable", "open"]
