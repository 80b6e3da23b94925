"""What memory scoring units and concepts takes, for whoever plans; loads no torch."""

from __future__ import annotations

UNIT_BLOCK, CONCEPT_BLOCK = 2048, 4096
"""Scores that are made at once."""
SLACK = 3
"""How many more than tau are kept by fast products, so that the exact ones of these few can show that no other matters."""
CACHED = 2**18
"""Numbers of float64 that stay near a processor while they are worked on."""


def scoring_bytes(
    units: int, concepts: int, width: int, tau: int, unit_block: int = UNIT_BLOCK, concept_block: int = CONCEPT_BLOCK
) -> int:
    """Memory that `score_blocks` takes at most beside the vectors it is given, in bytes.

    16 for each score of a block (exact, float32, and a few of each row), 16 for each number of the vectors of a block,
    all concepts once in float32, 64 for each place of a list and 80 for each row of either kind; never units x concepts.
    """
    unit_block, concept_block = min(unit_block, units), min(concept_block, concepts)
    scores = 16 * unit_block * concept_block
    vectors = 4 * concepts * width + 16 * (unit_block + concept_block) * width
    return scores + vectors + (units + concepts) * (80 + 64 * (tau + SLACK)) + 64 * CACHED
