"""A Spark session for tests, and its rows as the other engines give them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def open_spark() -> Iterator[Any]:
    """A Spark session of one thread in this process, for a fixture to yield from; skips without pyspark."""
    sql = pytest.importorskip("pyspark.sql", reason="needs pyspark: pip install 'miclip[spark]', and Java")
    builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    settings = {"spark.sql.shuffle.partitions": "1", "spark.driver.bindAddress": "127.0.0.1"}
    for name, value in {**settings, "spark.driver.host": "127.0.0.1"}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


def spark_rows(frame: Any) -> list[dict[str, Any]]:
    """Rows as the other engines give them; Spark's byte arrays as bytes."""
    rows = [row.asDict(recursive=True) for row in frame.collect()]
    return [{k: bytes(v) if isinstance(v, bytearray) else v for k, v in row.items()} for row in rows]
