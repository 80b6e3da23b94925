"""The questions of the demo, over rows that are counted by hand, and the files that it prepares."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from cluster.demo import QUESTIONS, DemoPaths, prepare
from cluster.spec_file import read_spec_file

UNITS, FEATURES, NAMES, SHARED, WORDS = (asked.query for asked in QUESTIONS)


@pytest.fixture
def tables() -> duckdb.DuckDBPyConnection:
    """16 images with a red ring, 16 with a blue star, and three units of one layer."""
    connection = duckdb.connect()
    connection.execute(
        """
        CREATE TABLE images AS SELECT 'i' || i AS image_id,
          CASE WHEN i < 16 THEN MAP {'shape': 'ring', 'colour': 'red', 'objects': '1'}
               ELSE MAP {'shape': 'heart', 'shape_2': 'star', 'colour': 'blue', 'colour_2': 'blue'} END AS attributes
        FROM range(32) t(i);
        CREATE TABLE top_images AS SELECT 'm' AS model, 's' AS site, unit, 'i' || i AS image_id, 1.0 AS value FROM
          (SELECT 0 AS unit, i FROM range(16) t(i) UNION ALL SELECT 1, i + 8 FROM range(16) t(i)
           UNION ALL SELECT 2, i + 16 FROM range(16) t(i));
        """
    )
    return connection


def test_units_are_counted_by_the_concepts_that_all_their_images_show(tables):
    """Unit 0 sees red rings, unit 1 half of each and so nothing, unit 2 stars beside hearts, all of them blue."""
    relation = tables.sql(UNITS)
    (row,) = [dict(zip(relation.columns, values)) for values in relation.fetchall()]
    assert (row["model"], row["site"], row["units"]) == ("m", "s", 3)
    assert (row["colour"], row["shape"], row["texture"], row["background"]) == (2, 2, 0, 0)
    assert row["example"] == "unit 0 shows red"


def test_a_unit_that_is_not_above_zero_sees_nothing(tables):
    tables.execute("UPDATE top_images SET value = 0 WHERE unit = 0")
    assert tables.sql(UNITS).fetchall()[0][3:5] == (1, 1)


def test_files_are_prepared_once_and_the_spec_names_them(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path / "demo")
    assert prepare(paths, 100) == 100 and prepare(paths, 100) == 0
    pipeline = read_spec_file(paths.spec).pipeline
    assert pipeline.images is not None and pipeline.images.ref == f"folder:{paths.world.resolve()}/images"
    assert pipeline.store == str(paths.store.resolve())


def test_concepts_are_told_by_their_best_feature():
    """Feature 3 tells red by 0.9 and blue by 0.7; ring is told by 0.8; labels and patches are not asked for."""
    connection = duckdb.connect()
    connection.execute(
        """
        CREATE TABLE sae_selectivity AS SELECT * FROM (VALUES
          (3, 'colour=red', 'image', 0.9), (4, 'colour=red', 'image', 0.6), (3, 'colour=blue', 'image', 0.7),
          (5, 'shape=ring', 'image', 0.8), (5, 'shape=ring', 'patch', 1.0), (5, 'label=red ring', 'image', 1.0)
        ) t(feature, concept, level, auroc)
        """
    )
    relation = connection.sql(FEATURES)
    rows = [dict(zip(relation.columns, values)) for values in relation.fetchall()]
    colour, shape = sorted(rows, key=lambda row: row["kind"])
    assert (colour["kind"], colour["concepts"], float(colour["mean_auroc"])) == ("colour", 2, 0.8)
    assert (colour["hardest"], colour["example"]) == ("colour=blue", "feature 3 is colour=red")
    assert (shape["kind"], shape["concepts"], float(shape["worst"])) == ("shape", 1, 0.8)


def test_a_feature_is_named_right_if_its_first_name_is_what_it_tells_best():
    """Of two features that tell something above 0.9, a red one and a ring, method a names both right and b the ring alone."""
    connection = duckdb.connect()
    connection.execute(
        """
        CREATE TABLE sae_selectivity AS SELECT 'sae:x' AS sae, * FROM (VALUES
          (3, 'colour=red', 'image', 0.95), (3, 'shape=star', 'image', 0.91), (4, 'shape=ring', 'image', 0.99),
          (5, 'colour=blue', 'image', 0.7), (6, 'colour=pink', 'patch', 0.99)
        ) t(feature, concept, level, auroc);
        CREATE TABLE unit_concepts AS SELECT 'sae:x' AS sae, * FROM (VALUES
          ('a', 'describe', 3, 'red', 0), ('a', 'describe', 3, 'star', 1), ('a', 'describe', 4, 'ring', 0),
          ('a', 'localise', 3, 'star', 0), ('a', 'describe', 5, 'pink', 0),
          ('b', 'describe', 3, 'star', 0), ('b', 'describe', 4, 'ring', 0)
        ) t(variant, direction, unit, concept, rank)
        """
    )
    relation = connection.sql(NAMES)
    a, b = (dict(zip(relation.columns, values)) for values in relation.fetchall())
    assert (a["method"], a["features"], a["named_right"], a["shape"], a["colour"]) == ("a", 2, 1.0, 1.0, 1.0)
    assert (b["method"], b["features"], b["named_right"], b["shape"], b["colour"]) == ("b", 2, 0.5, 1.0, 0.0)
    assert a["example"] == "feature 3 is called red"


def test_two_neurons_that_are_shared_are_right_if_both_are_plainly_about_the_same_concept(tables):
    """Units 0 (red rings) and 2 (blue stars beside hearts) have equal ones in model n; unit 1 is about nothing in either."""
    tables.execute(
        """
        INSERT INTO top_images SELECT 'n', 't', unit, image_id, value FROM top_images;
        CREATE TABLE rosetta_buddies AS SELECT 'm' AS model_a, 's' AS site_a, 'n' AS model_b, 't' AS site_b, 0.1 AS null_q999, *
        FROM (VALUES (0, 0, 0.9, 0, 0, false), (2, 2, 0.8, 0, 0, false), (1, 1, 0.7, 0, 0, false), (0, 2, 0.6, 0, 0, false),
          (2, 0, 0.5, 1, 0, false), (1, 2, 0.05, 0, 0, true)) t(unit_a, unit_b, r, rank_ab, rank_ba, is_below_null);
        INSERT INTO rosetta_buddies SELECT 'm', 's', 'm', 's', 0.1, 0, 2, 0.99, 0, 0, false;
        """
    )
    relation = tables.sql(SHARED)
    (row,) = [dict(zip(relation.columns, values)) for values in relation.fetchall()]
    assert (row["model_a"], row["model_b"], row["buddies"], row["both_known"], row["same_concept"]) == (
        "m",
        "n",
        4,
        3,
        2,
    )
    assert row["median_r"] == 0.75
    assert row["example"] in ("units 0 and 0: red", "units 0 and 0: ring")


def test_a_sentence_says_what_a_feature_tells_if_it_has_the_word():
    """Feature 3 tells red and 4 a ring; "red" is no word of "a cored object", and a feature that tells nothing well is not asked for."""
    connection = duckdb.connect()
    connection.execute(
        """
        CREATE TABLE sae_selectivity AS SELECT 'sae:x' AS sae, * FROM (VALUES
          (3, 'colour=red', 'image', 0.95), (3, 'shape=star', 'image', 0.91), (4, 'shape=ring', 'image', 0.99),
          (5, 'colour=blue', 'image', 0.7), (6, 'background=grey', 'image', 0.97)
        ) t(feature, concept, level, auroc);
        CREATE TABLE explanation_scores AS SELECT 'sae:x' AS sae, NULL::BOOLEAN AS named, * FROM (VALUES
          ('steering', 'sae', 3, 'A Red object', 0.5), ('steering', 'sae', 4, 'A small ring', 0.9),
          ('steering', 'sae', 5, 'A blue object', 1.0), ('steering', 'sae', 6, 'A grey background', 1.0),
          ('steering', 'random', 3, 'A cored object', 0.0), ('steering', 'random', 4, NULL, NULL), ('steering', 'random', 6, 'A star', 0.0)
        ) t(method, direction, feature, text, iou)
        """
    )
    relation = connection.sql(WORDS)
    own, random = (dict(zip(relation.columns, values)) for values in relation.fetchall())
    assert (own["method"], own["control"], own["features"], own["says_it"], own["of_objects"]) == (
        "steering",
        "",
        3,
        1.0,
        1.0,
    )
    assert own["iou"] == 0.8 and own["example"] == "feature 4: A small ring"
    assert (random["control"], random["says_it"], random["example"]) == ("random directions", 0.0, None)
