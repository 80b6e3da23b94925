"""Columns of labels as categories."""

from miclip_core.sae.features.concepts import attribute_categories, label_categories, label_category


def test_labels_are_numbered_in_order_and_images_without_one_are_left_out():
    category = label_category(["dog", None, "cat", "dog"])
    assert category is not None and category.concepts == ("label=cat", "label=dog")
    assert category.classes.tolist() == [[1], [-1], [0], [1]] and category.n == 3
    assert label_category(["cat", "cat", None]) is None and label_category([]) is None


def test_columns_with_one_or_too_many_values_are_no_concepts():
    rows = [{"constant": "1", "id": str(i), "colour": "red" if i % 2 else "blue"} for i in range(9)]
    assert [c.name for c in attribute_categories(rows, max_values=8)] == ["colour"]
    assert [c.name for c in attribute_categories(rows, max_values=9)] == ["colour", "id"]


def test_numbered_columns_are_further_values_of_the_first():
    rows = [{"shape": "star", "shape_2": "ring"}, {"shape": "ring", "shape_2": "ring"}, {}, {"shape": "star"}, None]
    (category,) = attribute_categories(rows, 10)
    assert category.concepts == ("shape=ring", "shape=star")
    assert category.classes.tolist() == [[1, 0], [0, -1], [-1, -1], [1, -1], [-1, -1]]
    assert category.positives.tolist() == [2, 2] and category.n == 3


def test_a_number_at_the_end_of_a_name_alone_means_nothing():
    rows = [{"layer_2": "a", "layer_1": "x"}, {"layer_2": "b", "layer_1": "y"}]
    assert [c.name for c in attribute_categories(rows, 10)] == ["layer_1", "layer_2"]


def test_pairs_as_a_table_gives_them_are_read_like_mappings():
    assert attribute_categories([[("a", "x")], [("a", "y")]], 5)[0].values == ("x", "y")


def test_the_label_comes_before_the_columns():
    labels, rows = ["cat", None, "dog"], [{"size": "s"}, {"size": "l"}, {"size": "s"}]
    assert [c.name for c in label_categories(labels, rows, 5)] == ["label", "size"]
    assert [c.name for c in label_categories([None, "cat", "cat"], rows, 5)] == ["size"]
    assert label_categories([None] * 3, rows, 1) == ()
