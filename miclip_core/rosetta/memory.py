"""What memory tiles of correlations, rescoring and the graph of a zoo take, for whoever plans; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

CHUNKS = 4096
"""Chunks whose fp32 sums are added in a row. Rounding grows with the root of their number, to at most 4e-6 of r here; then
blocks of sums are added up."""
CACHED = 2**18
"""Numbers of fp32 per thread that stay near a processor while moments are taken and maps are moved."""
SLICE = 2**22
"""Numbers of fp64 that are made of maps at a time, of one side: 32 MB."""


def products_bytes(rows: int, cols: int, chunks: int) -> int:
    """Memory that the accumulator of a tile of rows x cols pairs holds while so many chunks are added, in bytes.

    4 for each pair, 8 beyond CHUNKS; 16 for each unit of either side. Maps of a chunk come on top: those handed in, and,
    of a side that is moved to the grid of the other or rounded, as many once more.
    """
    return (4 if chunks <= CHUNKS else 8) * rows * cols + 16 * (rows + cols)


def rescoring_bytes(pairs: int, numbers_a: int, numbers_b: int) -> int:
    """Memory that rescoring takes beside the maps it is given, in bytes; numbers_a and _b: those of one image's maps.

    Four times SLICE numbers of fp64, or those of one image if these are more; 48 for each pair.
    """
    return 8 * 4 * max(SLICE, numbers_a, numbers_b) + 48 * pairs


def zoo_bytes(units: int, edges: int, members: int, tuples: Sequence[int]) -> int:
    """Memory that the graph of a zoo takes with all that is found in it, in bytes; tuples: how many each anchor has at most.

    96 MB for what is looked for and written at a time; 110 for each edge while edges are sorted and counted; 200 for each unit;
    4 for each vertex of a tuple, and 44 more for those of the anchor at hand.
    """
    return (96 << 20) + 110 * edges + 200 * units + members * (4 * sum(tuples) + 44 * max(tuples, default=0))
