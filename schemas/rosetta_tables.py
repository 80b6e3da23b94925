"""The tables of units that models share: units, neighbours, buddies, pairs of models, the graph of a zoo, its dictionary."""

from __future__ import annotations

import pyarrow as pa

from schemas.columns import IMAGE, MODEL, SITE, STAGE, UNITS, VECTOR, Table, columns

_ONE = (
    MODEL,
    *UNITS,
    SITE,
    ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
)
_OF_A = (
    ("model_a", pa.string(), "full model ref"),
    ("sae_a?", pa.string(), "ref of the SAE whose latents its units are; null for neurons"),
)
_OF_B = (
    ("model_b", pa.string(), "full model ref of the other"),
    ("sae_b?", pa.string(), "ref of the SAE whose latents its units are; null for neurons"),
)
_UNIT_A = (
    *_OF_A,
    ("site_a", pa.string(), "canonical site"),
    ("unit_a", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
)
_UNIT_B = (
    *_OF_B,
    ("site_b", pa.string(), "canonical site"),
    ("unit_b", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
)
_ANCHOR = (
    ("anchor_model", pa.string(), "full model ref of the anchor"),
    ("anchor_sae?", pa.string(), "ref of the SAE whose latents its units are; null for neurons"),
)
_K = ("k", pa.int32(), "buddies are among the k nearest of each other")
_R = ("r", pa.float64(), "Pearson correlation over images and positions of the interpolated maps")

ROSETTA: tuple[Table, ...] = (
    Table(
        "rosetta_units",
        "one unit that takes part in a comparison of models, and how it is distributed over images and positions",
        columns(
            STAGE,
            *_ONE,
            ("depth", pa.float32(), "place of its site among all sites of the model: 0 first, 1 last"),
            ("grid_h", pa.int32(), "rows of its map"),
            ("grid_w", pa.int32(), "columns of its map"),
            ("images", pa.int64(), "images"),
            ("n", pa.int64(), "images times positions"),
            ("mean", pa.float64(), "mean", "as in the model"),
            ("sd", pa.float64(), "population standard deviation", "as in the model"),
            ("skewness?", pa.float32(), "third standardised moment; null for a dead unit"),
            ("kurtosis?", pa.float32(), "fourth standardised moment less 3; null for a dead unit"),
            (
                "active",
                pa.float32(),
                "share of positions above 0 if it is never negative, else above 3 standard deviations",
            ),
            ("images_active", pa.int64(), "images with such a position"),
            ("is_dead", pa.bool_(), "whether it does not vary; it is compared with nothing"),
            ("is_rare", pa.bool_(), "whether it is active on too few images or positions to be told from chance"),
        ),
    ),
    Table(
        "rosetta_neighbours",
        "one of the units of another model that go along best with one unit; both directions of a pair of models",
        columns(
            STAGE,
            *_UNIT_A,
            *_UNIT_B,
            ("rank", pa.int32(), "0 is the nearest of unit_a among the units of model_b"),
            _R,
            ("is_exact", pa.bool_(), "whether no unit outside the margin of the fast pass can belong here"),
        ),
    ),
    Table(
        "rosetta_buddies",
        "two units that are among the nearest of each other",
        columns(
            STAGE,
            *_UNIT_A,
            *_UNIT_B,
            _R,
            ("rank_ab", pa.int32(), "place of unit_b among the nearest of unit_a, 0-based"),
            ("rank_ba", pa.int32(), "place of unit_a among the nearest of unit_b, 0-based"),
            ("null_q999", pa.float64(), "99.9 % quantile of the best r of a unit where images do not belong together"),
            ("is_below_null", pa.bool_(), "whether r is not above it"),
        ),
    ),
    Table(
        "rosetta_pairs",
        "two models (or one with itself) under one number of neighbours: k and, for counts without doubt, 1",
        columns(
            STAGE,
            *_OF_A,
            *_OF_B,
            _K,
            ("rule", pa.string(), "where maps were compared: pairwise_max or rows x columns"),
            ("units_a", pa.int64(), "units of the first that were compared"),
            ("units_b", pa.int64(), "units of the second that were compared"),
            ("images", pa.int64(), "images that both saw"),
            ("buddies", pa.int64(), "pairs of units that are among the k nearest of each other"),
            ("buddies_null", pa.int64(), "the same where images do not belong together"),
            ("above_null", pa.int64(), "of the buddies those with r above null_q999"),
            ("share_a", pa.float64(), "share of units of the first that have a buddy"),
            ("share_b", pa.float64(), "share of units of the second that have a buddy"),
            ("r_p50?", pa.float64(), "median of r over buddies; null without any"),
            ("r_p90?", pa.float64(), "90 % quantile of r over buddies"),
            ("null_p50?", pa.float64(), "median of the best r of a unit where images do not belong together"),
            ("null_q999?", pa.float64(), "its 99.9 % quantile"),
            ("null_max?", pa.float64(), "its maximum"),
            ("inexact", pa.int64(), "units whose last neighbours are not certain; a larger margin settles them"),
            ("shares_training?", pa.bool_(), "whether both were trained on the same targets; null where not known"),
        ),
    ),
    Table(
        "rosetta_moments",
        "mean and spread of one unit's maps as interpolated for one pair of models, for inversion",
        columns(
            STAGE,
            *_ONE,
            ("target_h", pa.int32(), "rows of the grid"),
            ("target_w", pa.int32(), "columns of the grid"),
            ("n", pa.int64(), "images times positions"),
            ("mean", pa.float64(), "mean", "as in the model"),
            ("sd", pa.float64(), "population standard deviation", "as in the model"),
        ),
    ),
    Table(
        "rosetta_universality",
        "one unit in the graph of a zoo: in how many other models it has a buddy",
        columns(
            STAGE,
            *_ONE,
            _K,
            ("depth", pa.float32(), "place of its site among all sites of the model: 0 first, 1 last"),
            ("degree", pa.int32(), "other models in which it has a buddy above the null"),
            ("models", pa.int32(), "other models that it was compared with"),
            ("best_r?", pa.float64(), "its best r; null without a buddy"),
            ("kurtosis?", pa.float32(), "fourth standardised moment less 3"),
            ("active", pa.float32(), "share of positions where it is active"),
        ),
    ),
    Table(
        "rosetta_cliques",
        "one unit of a clique: units of different models that are all buddies of each other",
        columns(
            STAGE,
            _K,
            ("clique", pa.int64(), "number, largest and then strongest first, 0-based"),
            ("size", pa.int32(), "models in it"),
            *_ONE,
            ("min_r", pa.float64(), "smallest r inside"),
            ("mean_r", pa.float64(), "mean r inside"),
            ("is_truncated", pa.bool_(), "whether cliques beyond the most that are listed were left out"),
        ),
    ),
    Table(
        "rosetta_components",
        "one unit of a connected component of the graph of buddies; components chain and are no concepts",
        columns(
            STAGE,
            _K,
            ("component", pa.int64(), "number, largest first, 0-based"),
            ("units", pa.int64(), "units in it"),
            ("models", pa.int32(), "models in it"),
            ("density", pa.float32(), "edges over pairs of units of different models"),
            ("longest_path", pa.int32(), "largest distance of two of its units, or what was found of it", "edges"),
            ("is_path_exact", pa.bool_(), "whether no longer one exists"),
            ("core", pa.int32(), "largest c so that the unit is in the c-core"),
            *_ONE,
        ),
    ),
    Table(
        "rosetta_tuples",
        "one member of a tuple: a unit of an anchor with a buddy in every other model",
        columns(
            STAGE,
            *_ANCHOR,
            ("anchor_site", pa.string(), "canonical site"),
            ("anchor_unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
            ("tuple", pa.int64(), "number, by mean r descending, 0-based"),
            *_ONE,
            _R,
            ("alternatives", pa.int32(), "further buddies of the anchor unit in that model"),
            ("mean_r", pa.float64(), "mean over the members"),
            ("min_r", pa.float64(), "smallest of the members"),
            ("is_truncated", pa.bool_(), "whether tuples beyond the most that are listed were left out"),
        ),
    ),
    Table(
        "rosetta_anchors",
        "two models as anchors: how far their tuples are the same sets of units",
        columns(
            STAGE,
            *_OF_A,
            *_OF_B,
            ("tuples_a", pa.int64(), "tuples around the first"),
            ("tuples_b", pa.int64(), "tuples around the second"),
            ("jaccard?", pa.float64(), "share of tuples that both have; null without any"),
        ),
    ),
    Table(
        "rosetta_clusters",
        "one unit of an anchor in a cluster of units that are buddies of each other inside the anchor",
        columns(
            STAGE,
            *_ANCHOR,
            ("cluster", pa.int32(), "number, largest first, 0-based"),
            ("site", pa.string(), "canonical site"),
            ("unit", pa.int32(), "channel of the site or latent of the SAE, 0-based"),
            ("size", pa.int32(), "units in it"),
            ("density", pa.float32(), "edges over pairs of units"),
            ("min_r?", pa.float64(), "smallest r over its edges; null for a unit alone"),
            ("is_split", pa.bool_(), "whether it was cut from a long chain by complete linkage"),
        ),
    ),
    Table(
        "rosetta_layers",
        "two sites of two models: buddies between them",
        columns(
            STAGE,
            _K,
            *_OF_A,
            ("site_a", pa.string(), "canonical site"),
            ("depth_a", pa.float32(), "its place in the model: 0 first, 1 last"),
            *_OF_B,
            ("site_b", pa.string(), "canonical site"),
            ("depth_b", pa.float32(), "its place in the model: 0 first, 1 last"),
            ("buddies", pa.int64(), "pairs of units above the null"),
            ("r_p50?", pa.float64(), "median of their r"),
        ),
    ),
    Table(
        "rosetta_entries",
        "one unit of an entry of the dictionary",
        columns(
            STAGE,
            ("entry", pa.int32(), "number, 0-based"),
            ("origin", pa.string(), "clique, or cluster of an anchor"),
            ("models", pa.int32(), "models in it"),
            ("size", pa.int32(), "units in it"),
            *_ONE,
            ("mean_r?", pa.float64(), "mean r of this unit to the others that it is a buddy of"),
            ("is_representative", pa.bool_(), "whether that is the largest of the entry"),
            ("shares_training?", pa.bool_(), "whether all its models were trained on the same targets"),
        ),
    ),
    Table(
        "rosetta_exemplars",
        "the map of one unit of an entry on one of the images that excite all its units most",
        columns(
            STAGE,
            ("entry", pa.int32(), "number, as in rosetta_entries"),
            ("rank", pa.int32(), "0 is the image that excites its units most"),
            *IMAGE,
            ("uri", pa.string(), "where the image is"),
            ("score", pa.float32(), "mean over models of the largest standardised activation"),
            *_ONE,
            ("peak", pa.float32(), "largest standardised activation of this unit on the image"),
            ("grid_h", pa.int32(), "rows of the map"),
            ("grid_w", pa.int32(), "columns of the map"),
            ("map", VECTOR, "standardised activations, row-major"),
        ),
    ),
)
