"""How much the methods hold at once, and what memory that is in all; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.tokens.blocks import READ_BYTES
from miclip_core.concepts.memory import scoring_bytes
from schemas.concept_specs import OF_LABELS

READ_IMAGES = 32
"""Rows of the index that are seen together, counted from 0: so activations do not depend on how the index is cut."""
WAITING_NUMBERS = 1 << 22
"""Pooled activations that are taken in at once: short batches cost more than they hold."""
BLOCK_NUMBERS = 1 << 26
"""Activations of one block of units over all images: 256 MB as float32."""
RANKED_NUMBERS = 1 << 22
"""Of them those that are ranked at once by `auroc`."""
BLOCK_SUMS = 1 << 24
"""Sums of one block of units and all labelled concepts: 128 MB as float64."""
BLOCK_SCORES = 1 << 24
"""Scores of one block of units and all concepts."""
IMAGES_AT_ONCE = 1024
"""Whose cosines with all concepts exist at once in `cos_cubed`."""

TOKEN_BYTES = 12
"""Per number of a token: as stored, in float32, and what pooling or encoding makes of it."""
RANKED_BYTES = 120
SCORE_BYTES = 30
"""Per activation that is ranked, and per score, while they are made."""
PROBABILITY_BYTES = 3 * (128 << 20)
"""Of the blocks in which `wpmi` and `rank_reorder` compare images with concepts."""
LABEL_BYTES = 600
"""Of the labels and attributes of one image while they are read."""
COUNT_BYTES = 16 << 10
"""Per unit, of the counts by which `netdissect` finds thresholds."""
BLOCK_COUNTS_BYTES = 4 * (64 << 20)
"""Of its tables of counts and maps."""
TOP_K = {"wpmi": 28, "soft_wpmi": 100}


@dataclass(frozen=True)
class Sizes:
    """What a stage is about: rows of the index, of them in one shard, positions of an image, width of a token, units,
    concepts, width of the space of the CLIP (0 without one), and length of the lists."""

    rows: int
    shard_rows: int
    positions: int
    width: int
    units: int
    concepts: int
    dim: int
    tau: int

    @property
    def reading(self) -> int:
        """Bytes of tokens on their way, and of what units do on them."""
        together = 4 * READ_IMAGES * self.positions * self.width
        waiting = 4 * max(WAITING_NUMBERS, READ_IMAGES * self.units)
        return max(READ_BYTES, together) * TOKEN_BYTES // 4 + 3 * waiting

    @property
    def lists(self) -> int:
        """Bytes of the lists in both directions, and of their rows on their way to the table."""
        return (self.units + self.concepts) * (80 + 64 * self.tau)


def method_bytes(method: str, similarity: str | None, s: Sizes) -> tuple[int, int]:
    """Memory of one stage: what it holds while its siblings go on, and the peak of what it does when it is its turn."""
    embeddings = 4 * s.rows * s.dim
    pooled = 3 * 4 * BLOCK_NUMBERS
    scores = BLOCK_SCORES * SCORE_BYTES
    shard = 2 * 4 * s.shard_rows * s.units
    match similarity or method:
        case "miclip":
            seen = 2 * 16 * s.units
            scored = scoring_bytes(s.units, s.concepts, s.dim, s.tau) + 2 * 4 * s.units * s.dim + 4 * s.concepts * s.dim
        case "act_values":
            seen = 2 * 8 * s.units * min(s.concepts, s.shard_rows)
            scored = 4 * 8 * min(BLOCK_SUMS, s.units * s.concepts)
        case "auroc":
            seen, scored = shard, min(pooled, 12 * s.rows * s.units) + RANKED_NUMBERS * RANKED_BYTES
        case "cos":
            seen = 3 * 8 * s.units * s.dim
            scored = seen + scores
        case "cos_cubed" | "rank_reorder":
            seen = shard
            scored = min(pooled, 12 * s.rows * s.units) + 3 * embeddings + scores + PROBABILITY_BYTES
        case "wpmi" | "soft_wpmi":
            best = 12 * s.units * TOP_K[similarity or ""]
            seen = 3 * best
            scored = 3 * best + 2 * min(embeddings, 4 * TOP_K[similarity or ""] * s.units * s.dim) + scores
            scored += PROBABILITY_BYTES
        case "netdissect":
            seen = max(COUNT_BYTES, 8 * s.concepts) * s.units + BLOCK_COUNTS_BYTES
            scored = BLOCK_COUNTS_BYTES  # shards are joined one block of units after another
        case _:
            seen = 3 * 16 * 100 * s.units
            scored = scoring_bytes(s.units, s.concepts, s.dim, s.tau) + 2 * 4 * s.units * s.dim
    labels = LABEL_BYTES * s.rows if method in OF_LABELS else 0
    return seen, max(s.reading, scored + s.lists) + labels


def between_bytes(method: str, similarity: str | None, s: Sizes) -> int:
    """What its rounds hand to each other, in the store."""
    shards = -(-s.rows // s.shard_rows)
    match similarity or method:
        case "auroc" | "cos_cubed" | "rank_reorder":
            return 4 * s.rows * s.units
        case "act_values":
            return 8 * shards * s.units * min(s.concepts, s.shard_rows)
        case "cos":
            return 8 * shards * (s.units + s.dim) * s.dim
        case "wpmi" | "soft_wpmi":
            return 12 * shards * s.units * TOP_K[similarity or ""]
        case "netdissect":
            return COUNT_BYTES // 4 * shards * s.units
        case "v_interp":
            return 16 * 8 * shards * s.units
        case _:
            return 16 * shards * s.units
