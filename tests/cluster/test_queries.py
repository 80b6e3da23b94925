"""The library of named queries: answers one can check by hand, the same in every engine, and a header that keeps its word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

import miclip
from cluster.catalog import Catalog, Scope, open_catalog
from cluster.cli.app import app
from cluster.named_queries import NamedQuery, fill, get_query, load_queries, parse_query, run_named
from cluster.sql import quote
from cluster.stores import make_store
from cluster.views import make_views
from schemas.errors import UsageError
from schemas.tables import TABLES
from tests.made_up_lake import BOTH, DEEP, ODD, SAE, SITE, A, B, buddies, image, predictions, publish, publish_zoo
from tests.queries import DOCS
from tests.spark_session import open_spark, spark_rows

QUERIES = load_queries()
Rows = list[dict[str, Any]]
Answer = tuple[dict[str, Any], list[str], list[tuple[Any, ...]]]

EXPECTED: dict[str, Answer] = {
    "accuracy": ({}, ["model", "images", "accuracy", "mean_probability"], [(A, 2, 0.5, 0.75), (B, 2, 0.0, 0.75)]),
    "bad-inputs": ({}, ["reason", "images", "one_of_them"], [("truncated", 2, "/a"), ("empty", 1, "/c")]),
    "best-explained": (
        {},
        ["feature", "text", "vote", "iou", "uri"],
        [(1, "Red things", "heatmaps", 0.5, None), (0, "a red ring", "masks", 0.25, "/0")],
    ),
    "clear-features": (
        {},
        ["sae", "feature", "clarity_z", "concept", "auroc", "uri"],
        [(SAE, 0, 5.0, "colour=red", 0.875, "/0"), (SAE, 3, 5.0, "colour=red", 1.0, None)],
    ),
    "cliques": ({}, ["zoo", "clique", "size", "min_r", "model", "unit"], [(BOTH, 0, 2, 0.5, A, 1), (BOTH, 0, 2, 0.5, B, 4)]),
    "concept-units": (
        {"concept": "red"},
        ["site", "sae", "unit", "source", "method", "rank", "says", "score"],
        [
            (DEEP, "", 1, "concept", "clip_dissect", 0, "red", 0.5),
            (DEEP, "", 7, "concept", "clip_dissect", 1, "red", 0.5),
            (DEEP, "", 5, "concept", "clip_dissect", 0, "dark red", 0.5),
            (SITE, SAE, 3, "label", "image", 0, "colour=red", 1.0),
            (SITE, SAE, 0, "label", "image", 1, "colour=red", 0.875),
            (SITE, SAE, 1, "sentence", "topk", 0, "Red things", 0.5),
            (SITE, SAE, 0, "sentence", "topk", 0, "a red ring", 0.25),
        ],
    ),
    "contents": (
        {"subject": "folder:%"},
        ["kind", "subject", "table_name", "stages", "rows", "parts"],
        [
            ("index_images", "folder:/x", "images", 1, 3, 1),
            ("index_images", "folder:/y", "bad_inputs", 1, 3, 1),
            ("index_images", "folder:/y", "images", 1, 1, 1),
        ],
    ),
    "drift": (
        {},
        ["aspect", "item", "before", "after", "difference"],
        [
            ("concept", "red", 3.0, 1.0, -2.0), ("metric", "l0", 8.0, 9.0, 1.0), ("metric", "fvu", 0.5, 0.25, -0.25),
            ("metric", "top1", None, 1.0, None),
        ],
    ),
    "explanation-methods": (
        {},
        ["metric", "method", "value", "n"],
        [("clip", "steering", None, 8), ("iou", "steering", 0.5, 8), ("iou", "topk", 0.25, 8)],
    ),
    "hard-images": (
        {},
        ["label", "mistakes", "predictions", "uri"],
        [("star", 2, 2, "/x/1"), ("circle", 1, 2, "/x/0")],
    ),
    "interventions": (
        {},
        ["variant", "seed", "op", "beta", "dacc"],
        [("miclip in", 0, "add", 2.0, 1.0), ("miclip in", None, "scale", 0.0, -25.0), ("miclip in", 0, "scale", 0.0, -12.5)],
    ),
    "methods": (
        {},
        ["measure", "variant", "value", "ceiling", "seeds", "n"],
        [("accuracy", "clip_dissect", 0.625, 1.0, 1, 8), ("accuracy", "miclip in", 0.5, 1.0, 2, 8)],
    ),
    "models": ({}, ["model", "family", "width", "revision"], [(A, "vit", 8, None), (B, "vit", 8, None)]),
    "partners": (
        {"unit": 1, "model": A},
        ["site", "unit", "other", "other_site", "other_unit", "r", "concept", "variant"],
        [(DEEP, 1, B, SITE, 9, 0.875, "violet", "clip_dissect"), (DEEP, 1, B, DEEP, 4, 0.75, None, None)],
    ),
    "sae-quality": ({}, ["model", "site", "latents", "fvu", "sae"], [(A, SITE, 8, 0.125, "sae:1"), (A, SITE, 8, 0.25, "sae:0")]),
    "sites": (
        {"site": "mlp%"}, ["model", "site", "kind", "table_name", "stages", "rows"], [(A, DEEP, "describe", "unit_concepts", 1, 9)],
    ),
    "top-images": (
        {"unit": 1},
        ["site", "sae", "unit", "rank", "value", "token", "uri"],
        [(DEEP, "", 1, 0, 0.75, 3, "/x/0"), (DEEP, "", 1, 1, 0.5, 3, "/x/1")],
    ),
    "unit-names": (
        {"unit": 0},
        ["site", "sae", "source", "method", "rank", "name", "score"],
        [
            (SITE, SAE, "concept", "clip_dissect", 0, "circle", 0.5),
            (SITE, SAE, "label", "image", 0, "colour=red", 0.875),
            (SITE, SAE, "label", "image", 1, "shape=star", 0.5),
            (SITE, SAE, "sentence", "steering", 0, ODD, None),
            (SITE, SAE, "sentence", "topk", 0, "a red ring", 0.25),
        ],
    ),
    "universal-units": (
        {},
        ["zoo", "model", "unit", "degree", "best_r", "concept"],
        [(BOTH, A, 1, 2, 0.875, "pink"), (BOTH, B, 4, 1, 0.75, None), (BOTH, B, 5, 1, 0.25, None)],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    publish_zoo(store)
    return open_catalog(store, Scope(all=True))


# -- the same answers in every engine, over what `miclip views` says


def in_duckdb(catalog: Catalog) -> Callable[[str], Rows]:
    connection = duckdb.connect()
    connection.execute(make_views(catalog, "duckdb", empty=True))
    return lambda query: connection.sql(query).to_arrow_table().to_pylist()


def in_polars(catalog: Catalog) -> Callable[[str], Rows]:
    names: dict[str, Any] = {}
    exec(make_views(catalog, "polars", empty=True), names)
    context = pl.SQLContext({name: frame for name, frame in names.items() if isinstance(frame, pl.LazyFrame)})
    return lambda query: context.execute(query, eager=True).to_dicts()


def in_datafusion(catalog: Catalog) -> Callable[[str], Rows]:
    names: dict[str, Any] = {}
    exec(make_views(catalog, "datafusion", empty=True), names)
    return lambda query: [row for batch in names["ctx"].sql(query).collect() for row in batch.to_pylist()]


ENGINES = {"duckdb": in_duckdb, "polars": in_polars, "datafusion": in_datafusion}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, catalog: Catalog) -> tuple[str, Callable[[str], Rows]]:
    return request.param, ENGINES[request.param](catalog)


def check(name: str, rows: Rows) -> None:
    _, columns, expected = EXPECTED[name]
    assert [tuple(row[column] for column in columns) for row in rows] == expected


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_answers_as_one_would_by_hand_in_every_engine(name, engine, catalog):
    which, ask = engine
    rows = ask(fill(QUERIES[name], EXPECTED[name][0], which))
    check(name, rows)
    assert rows == run_named(catalog, name, EXPECTED[name][0]).read_all().to_pylist()


@pytest.mark.slow
def test_spark_gives_the_same_answers_and_reads_tables_that_stand_empty(catalog):
    for spark in open_spark():
        for statement in make_views(catalog, "spark", empty=True).split(";\n"):
            if statement.strip():
                spark.sql(statement)
        for name, query in QUERIES.items():
            rows = spark_rows(spark.sql(fill(query, EXPECTED[name][0], "spark")))
            check(name, rows)
            assert rows == run_named(catalog, name, EXPECTED[name][0]).read_all().to_pylist(), name
        odd = spark.sql(fill(get_query("concept-units"), {"concept": ODD}, "spark"))
        assert [row["says"] for row in spark_rows(odd)] == [ODD]
        assert spark.sql(f"SELECT {quote(ODD + chr(10), 'spark')} AS odd").collect()[0]["odd"] == ODD + "\n"


def test_a_value_is_a_literal_whatever_is_in_it(engine):
    which, ask = engine
    assert [row["says"] for row in ask(fill(get_query("concept-units"), {"concept": ODD}, which))] == [ODD]
    assert ask(fill(get_query("concept-units"), {"concept": "' OR '1' = '1"}, which)) == []


def test_a_concept_is_found_where_a_word_begins_and_first_where_it_is_all_that_is_said(engine):
    which, ask = engine

    def says(concept: str) -> list[str]:
        rows = ask(fill(get_query("concept-units"), {"concept": concept, "most": 1}, which))
        return list(dict.fromkeys(row["says"] for row in rows))

    assert says("Red") == says("red") == ["red", "dark red", "colour=red", "Red things", "a red ring"]
    assert says("re") == ["dark red", "red", "colour=red", "Red things", "a red ring"]
    assert says("ed") == says("olour") == says("hings") == says("%") == says("_ed") == []
    assert says("colour=r") == ["colour=red"] and says("a red") == ["a red ring"]


@pytest.fixture(scope="module")
def other_words(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Labels that are no class of the predictions of A; of B's classes one is a label, though it is never the first."""
    store = make_store(str(tmp_path_factory.mktemp("words")))
    publish(store, "index_images", "folder:/x", images=[image(0, "red circle"), image(1, "red circle")])
    publish(store, "extract", A, SITE, predictions=predictions("circle", "circle"))
    second = [{**row, "class_name": "red circle"} if row["rank"] else row for row in predictions("star", "circle")]
    publish(store, "extract", B, SITE, predictions=second)
    return open_catalog(store, Scope(all=True))


@pytest.mark.parametrize("which", ENGINES)
def test_predictions_whose_classes_are_not_the_labels_are_neither_right_nor_wrong(which, other_words):
    ask = ENGINES[which](other_words)
    rows = ask(fill(get_query("accuracy"), {}, which))
    assert [(row["model"], row["images"], row["accuracy"]) for row in rows] == [(B, 2, 0.0), (A, 2, None)]
    hard = ask(fill(get_query("hard-images"), {}, which))
    assert [(row["uri"], row["mistakes"], row["predictions"]) for row in hard] == [("/x/0", 1, 1), ("/x/1", 1, 1)]


def test_stages_and_empty_tables_are_there_in_every_engine(engine, catalog):
    _, ask = engine
    assert ask("SELECT * FROM stages") == catalog.as_table().to_pylist()
    for name in set(TABLES) - set(catalog.tables):
        assert ask(f"SELECT * FROM {name}") == []
    assert ask("SELECT count(*) AS n FROM drift AS d LEFT JOIN activations AS a ON a.stage = d.stage") == [{"n": 4}]


@pytest.mark.parametrize(
    ("name", "args", "rows"),
    [
        ("accuracy", {"model": "%b"}, 1),
        ("hard-images", {"least": 2}, 1),
        ("hard-images", {"most": 1}, 1),
        ("models", {"model": B}, 1),
        ("sae-quality", {"site": "mlp%"}, 0),
        ("clear-features", {"least": 3}, 3),
        ("clear-features", {"most": 1}, 1),
        ("top-images", {"unit": 0}, 2),
        ("top-images", {"unit": 1, "most": 1}, 1),
        ("top-images", {"unit": 0, "sae": ""}, 0),
        ("unit-names", {"unit": 1}, 4),
        ("unit-names", {"unit": 1, "most": 1}, 3),
        ("unit-names", {"unit": 0, "site": DEEP}, 0),
        ("concept-units", {"concept": "red", "most": 1}, 5),
        ("concept-units", {"concept": "ring"}, 3),
        ("best-explained", {"least": 0.3}, 1),
        ("best-explained", {"vote": "masks"}, 1),
        ("methods", {"measure": "dacc%"}, 0),
        ("explanation-methods", {"metric": "iou"}, 2),
        ("interventions", {"op": "scale"}, 2),
        ("universal-units", {"least": 2}, 1),
        ("universal-units", {"k": 5}, 1),
        ("universal-units", {"most": 2}, 2),
        ("cliques", {"least": 1}, 3),
        ("cliques", {"most": 0}, 0),
        ("partners", {"unit": 4, "model": B}, 1),
        ("partners", {"unit": 1, "model": A, "site": SITE}, 0),
        ("drift", {"aspect": "metric"}, 3),
        ("drift", {"most": 1}, 1),
    ],
)  # fmt: skip
def test_parameters_choose_rows(catalog, name, args, rows):
    assert run_named(catalog, name, args).read_all().num_rows == rows


def test_the_first_seed_of_the_method_that_is_asked_for_names_a_unit(catalog):
    def names(**args: str) -> list[Any]:
        return run_named(catalog, "universal-units", args).read_all()["concept"].to_pylist()

    assert names(method="miclip") == ["blue", None, None] and names(method="auroc") == [None] * 3


# -- what is not there


@pytest.fixture(scope="module")
def pairs_only(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    store = make_store(str(tmp_path_factory.mktemp("pairs")))
    publish(store, "rosetta_pair", BOTH, rosetta_buddies=[buddies((A, DEEP, 1), (B, DEEP, 4), 0.75)])
    return open_catalog(store, Scope(all=True))


def test_an_optional_table_that_nobody_has_published_is_empty(pairs_only):
    (row,) = run_named(pairs_only, "partners", {"unit": 1, "model": A}).read_all().to_pylist()
    assert (row["other_unit"], row["concept"]) == (4, None)


def test_a_query_says_what_makes_the_tables_that_it_needs(pairs_only):
    with pytest.raises(UsageError) as refused:
        run_named(pairs_only, "universal-units", {})
    assert str(refused.value).startswith(
        "no published rows of rosetta_universality; a stage of kind mine_rosetta makes"
    )
    assert "unit_concepts" not in str(refused.value)
    with pytest.raises(UsageError, match="no published rows of sae_selectivity; a stage of kind sae_features makes"):
        run_named(pairs_only, "unit-names", {"unit": 1})


# -- headers


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_header_says_what_the_text_does(query: NamedQuery):
    slots = set(re.findall(r"(?<![:\w]):(\w+)", query.text))
    assert slots == {parameter.name for parameter in query.parameters}
    assert query.optional <= set(query.reads) and query.reads
    assert query.title and not query.title.endswith(".") and query.about.endswith(".")
    assert (
        "--" not in query.text
        and query.text.startswith(("SELECT", "WITH"))
        and " ORDER BY " in query.text.replace("\n", " ")
    )
    assert not set(re.findall(r"(\w+) AS \(", query.text)) & set(TABLES), "a part of it hides a table"
    assert re.fullmatch(r"[a-z-]+", query.name) and query.name in EXPECTED


def test_a_file_is_read_into_its_parts():
    query = parse_query(
        "q",
        "-- Title\n-- What a\n-- row is.\n-- :n int -- how many\n-- :s text = 'x y' -- a text\n-- optional: images, drift\nSELECT 1\n",
    )
    assert (query.title, query.about, query.optional) == ("Title", "What a row is.", {"images", "drift"})
    assert [(p.name, p.type, p.default) for p in query.parameters] == [("n", "int", None), ("s", "text", "x y")]
    assert query.text == "SELECT 1"


def test_the_page_lists_every_query_with_what_must_be_given():
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| ?([^|]*) ?\|$", (DOCS / "sql.md").read_text(), re.M)
    must = {q.name: {p.name for p in q.parameters if p.default is None} for q in QUERIES.values()}
    assert {name: set(re.findall(r"`(\w+)`", given)) for name, given in rows} == must


# -- Python and the command line


def miclip_cli(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_python_asks_by_name(catalog):
    lake = miclip.open(catalog.store.uri, all=True)
    assert lake.query("partners", unit=1, model=A)["other_unit"].to_pylist() == [9, 4]
    assert isinstance(lake.query("models"), pa.Table)


def test_the_command_line_asks_by_name_lists_and_shows(catalog):
    asked = miclip_cli(
        "sql",
        "--query",
        "partners",
        "--arg",
        "unit=1",
        "--arg",
        f"model={A}",
        "--store",
        catalog.store.uri,
        "--all",
        "--json",
    )
    assert [row["other_unit"] for row in json.loads(asked.stdout)] == [9, 4]
    listed = miclip_cli("sql", "--list").stdout
    assert all(query.title in listed for query in QUERIES.values()) and "unit*, model*, site" in listed
    assert [query["name"] for query in json.loads(miclip_cli("sql", "--list", "--json").stdout)] == list(QUERIES)
    one = miclip_cli("sql", "--list", "--query", "partners").stdout
    assert "must be given" in one and "reads rosetta_buddies, unit_concepts" in one
    shown = miclip_cli("sql", "--query", "models", "--arg", "model=it's", "--show", "spark").stdout
    assert "WHERE model LIKE 'it\\'s'" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sql"], "expected one query, or --query NAME"),
        (["sql"], "found neither"),
        (["sql", "SELECT 1", "--query", "models"], "expected one query, or --query NAME, found both"),
        (["sql", "SELECT 1", "--csv", "--parquet", "x"], "choose one of --json, --csv and --parquet"),
        (["sql", "SELECT 1", "--parquet", "no-such-folder/x"], "no-such-folder/x cannot be written: No such file or directory"),
        (["sql", "--query", "model"], "no query is called 'model'; there are"),
        (["sql", "--query", "model"], "did you mean models?"),
        (["sql", "--query", "partners", "--arg", "unit=1"], "query partners needs model (text): its model; give --arg model=…"),
        (["sql", "--query", "partners", "--arg", "unit=one"], "unit of query partners is 'one'; expected int"),
        (["sql", "--query", "best-explained", "--arg", "least=nan"], "expected float: IoU, at least"),
        (["sql", "--query", "models", "--arg", "site=x"], "query models has no parameter 'site'; there are model"),
        (["sql", "--query", "models", "--arg", "model"], "--arg model: expected NAME=VALUE"),
        (["sql", "--query", "models", "--arg", "model=a", "--arg", "model=b"], "--arg model is given twice, as 'a' and as 'b'"),
        (["sql", "SELECT 1", "--arg", "a=b"], "--arg is for a query of the library"),
        (["sql", "SELECT 1", "--show", "spark"], "--show is for a query of the library"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(catalog, words, says):
    result = miclip_cli(*words, "--store", catalog.store.uri, "--all")
    assert result.exit_code == 2 and says in " ".join(result.stderr.split()), result.output
