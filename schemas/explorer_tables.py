"""The two tables behind the pages of the explorer: all about a unit in one row, and the short form that lists and searches read."""

from __future__ import annotations

import pyarrow as pa

from schemas.columns import CODE, MODEL, SITE, STAGE, UNITS, Table, columns

PAGE_ROWS = 16
"""Rows of a row group where a page needs one of them: some 300 kB, one range to read."""

_COUNTS = pa.list_(pa.field("element", pa.int64(), nullable=False))
_ONE = (STAGE, MODEL, SITE, *UNITS, ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"))

EXPLORER: tuple[Table, ...] = (
    Table(
        "explorer_features",
        "one unit with all that its page shows; row n of a stage is unit n, dead ones too",
        columns(
            *_ONE,
            ("figures", pa.string(), "numbers of sae_features or activation_moments by their names, as JSON"),
            ("histogram?", _COUNTS, "as in sae_features; null for neurons"),
            (
                "names",
                pa.string(),
                "per method: method, variant, concepts with scores, whether the first is true; as JSON",
            ),
            (
                "concepts",
                pa.string(),
                "what labels say: level, concept, auroc and f1 of sae_selectivity, best first; as JSON",
            ),
            (
                "texts",
                pa.string(),
                "explanations with how they were made and their scores, the chosen ones first; as JSON",
            ),
            ("partners", pa.string(), "buddies in other models: model, sae, site, unit and r, best first; as JSON"),
            ("neighbours", pa.string(), "latents with the nearest decoder rows, and cosines; as JSON"),
            (
                "images",
                pa.string(),
                "its top images in order: image_id, words, width, height, value and what part the model saw; as JSON",
            ),
            ("thumbnails?", pa.binary(), "JPEG with a square tile for each of them, side by side; null without images"),
            ("cover?", pa.binary(), "JPEG with smaller tiles of the first four"),
            (
                "maps?",
                pa.binary(),
                "a byte per cell, image by image, row-major: 255 is map_most; null where no grid is known",
            ),
            ("map_h?", pa.int32(), "rows of each map"),
            ("map_w?", pa.int32(), "columns of each map"),
            ("map_most?", pa.float32(), "the largest value of the maps", CODE),
        ),
        group_rows=PAGE_ROWS,
    ),
    Table(
        "explorer_index",
        "one unit in short, for lists, search and the map of texts; one part, sorted by unit",
        columns(
            *_ONE,
            ("name?", pa.string(), "what the first method that names it calls it"),
            ("name_score?", pa.float32(), "score of that name by its method"),
            ("text?", pa.string(), "its chosen explanation, or its first"),
            ("text_iou?", pa.float32(), "IoU of that explanation"),
            ("concept?", pa.string(), "what it tells best of the images' labels"),
            ("auroc?", pa.float32(), "how well"),
            ("words", pa.string(), "all names, concepts and explanations, in small letters"),
            ("images_active?", pa.int64(), "images where it is active; null for neurons"),
            ("density?", pa.float32(), "share of tokens on which it is active, or of values above zero"),
            ("largest?", pa.float32(), "largest code or activation", CODE),
            ("monosemanticity?", pa.float32(), "as in sae_features"),
            ("partners", pa.int32(), "other models in which it has a buddy above the null"),
            ("best_r?", pa.float32(), "the largest r of those"),
            ("x?", pa.float32(), "place of its explanation on the map"),
            ("y?", pa.float32(), "place of its explanation on the map"),
            ("topic?", pa.string(), "what the cluster of its explanation is called"),
        ),
    ),
)
