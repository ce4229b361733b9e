"""One condition, three readers: a table in memory, PostgreSQL and Qdrant find the same rows."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index import conditions
from rectrio_lib.index.servers import rows as stored

sa = pytest.importorskip("sqlalchemy")
qdrant_client = pytest.importorskip("qdrant_client")
from sqlalchemy.dialects.postgresql import JSONB  # noqa: E402

from rectrio_lib.index.where.payloads import as_filter, models  # noqa: E402
from rectrio_lib.index.where.sql import expression  # noqa: E402

WORDS = ["", "a", "A", "cat", "Cat", "ca", "b", "été", "it's", "100%", "a_b", 'a"b', "ß", "Z", "\U0001f40c", "1", "2.5"]
DAYS = ["2024-05-01", "2024-05-01 12:00:00.000001", "1969-12-31 23:59:59", "2030-01-01", "2024-05-01T02:00:00"]
COUNT = 12
column = partial(st.lists, min_size=COUNT, max_size=COUNT)
whole = st.integers(-3, 3)
part = st.sampled_from([0.0, -0.0, 0.5, -2.5, 1e9, 3.0, 0.1, 1 / 3, -1e-9, 7.25])
tables = st.fixed_dictionaries(
    {
        "label": column(st.none() | st.sampled_from(WORDS)),
        "name": column(st.sampled_from(WORDS)),
        "count": column(whole),
        "share": column(st.none() | part),
        "size": column(st.none() | whole | part),
        "clean": column(st.booleans()),
        "seen": column(st.none() | st.booleans()),
        "day": column(st.none() | st.sampled_from(DAYS)),
        "tags": column(st.none() | st.lists(st.sampled_from([*WORDS, 1, 2.5]), max_size=3)),
    }
)


def frame(values):
    rows = pd.DataFrame({"image_id": [f"p{i}" for i in range(COUNT)]} | {name: values[name] for name in values})
    for name in ("label", "size", "seen", "tags"):
        rows[name] = pd.Series(values[name], dtype=object)
    return rows.assign(
        share=pd.Series(values["share"], dtype="float64"),
        day=pd.to_datetime(pd.Series(values["day"]), format="ISO8601"),
        kind=pd.Categorical(values["label"]),
    )


texts = st.sampled_from(["label", "name", "kind"])
numbers = st.sampled_from(["count", "share", "size"])
constants = st.sampled_from(["0", "1", "-2.5", "3", "0.5", "1e9", "'3'"])
plain = st.sampled_from(["0", "1", "-2.5", "3", "0.5"])
results = st.recursive(
    numbers | plain, lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner), max_leaves=4
) | st.builds(
    "({} {} {})".format, numbers, st.sampled_from(["//", "%", "/"]), numbers | st.sampled_from(["2", "0.3", "-1"])
)
compared, unlike = st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.sampled_from(["==", "!="])
words, days = st.sampled_from(WORDS).map(repr), st.sampled_from([*DAYS, "2024-05-01 02:00+02:00"]).map(repr)
within = st.sampled_from(["in", "not in"])
lists = lambda values: st.lists(values, max_size=3).map(lambda found: f"[{', '.join(found)}]")  # noqa: E731
simple = st.one_of(
    st.builds("{} {} {}".format, texts, compared, words | texts),
    st.builds("{} {} {}".format, words, compared, texts),
    st.builds("{} {} {}".format, texts, unlike, constants),
    st.builds("{} {} {}".format, texts, within, lists(words | constants)),
    st.builds("{} {} {}".format, words | constants, within, texts | st.just("tags")),
    st.builds("{} {} {}".format, numbers, compared, constants),
    st.builds("{} {} {}".format, numbers, compared, results),
    st.builds("{} {} {} {} {}".format, plain, compared, numbers, compared, results),
    st.builds("{} {} {}".format, numbers, within, lists(constants)),
    st.builds("{} + 1 {} {}".format, numbers, within, lists(plain)),
    st.sampled_from(["clean", "seen", "clean == seen", "seen != count", "clean in [1]", "seen not in [True, 0]"]),
    st.builds(
        "{} {} {}".format, st.sampled_from(["clean", "seen"]), compared, st.sampled_from(["True", "False", "0.5", "2"])
    ),
    st.builds("day {} {}".format, compared, days | st.just("day")),
    st.builds("{} {} day < {}".format, days, compared, days),
    st.builds("day {} {}".format, within, lists(days)),
)
wheres = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or"]), inner), inner.map("not ({})".format)
    ),
    max_leaves=4,
)


def read_by_table(rows, where):
    return np.flatnonzero(conditions.matching(rows, where)).tolist()


def read_by_sql(engine, rows, where):
    columns = stored.columns_of(rows, {})
    place, data = sa.Column("place", sa.Integer), sa.Column("data", JSONB)
    table = sa.Table("found", sa.MetaData(), place, data, prefixes=["TEMPORARY"])
    with engine.connect() as connection:
        table.drop(connection, checkfirst=True)
        table.create(connection)
        connection.execute(sa.insert(table), [{"place": i, "data": row} for i, row in enumerate(stored.records(rows))])
        holds = expression(where, stored.kinds(columns), table.c.data)
        found = connection.scalars(sa.select(table.c.place).where(holds).order_by(table.c.place)).all()
        others = connection.scalars(sa.select(table.c.place).where(~holds)).all()
        connection.rollback()
    assert len(found) + len(others) == len(rows), "a condition was null"
    return list(found)


def read_by_qdrant(client, rows, where):
    kinds = stored.kinds(stored.columns_of(rows, {}))
    held = stored.table(stored.records(rows), stored.columns_of(rows, {}))
    client.create_collection("c", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT))
    points = enumerate(stored.records(rows))
    client.upsert("c", [models.PointStruct(id=i, vector=[1.0], payload={"row": record}) for i, record in points])
    chosen = as_filter(where, kinds, lambda part: conditions.holds(part, held))
    found = client.scroll("c", models.Filter(must=[chosen]), limit=100)[0]
    client.delete_collection("c")
    return [point.id for point in found]


@pytest.fixture(scope="module")
def readers(postgres_url):
    postgres = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    local = qdrant_client.QdrantClient(":memory:")
    yield {
        "PostgreSQL": partial(read_by_sql, postgres),
        "Qdrant": partial(read_by_qdrant, local),
    }
    postgres.dispose()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=tables, where=wheres)
def test_every_reader_finds_the_same_rows(readers, values, where):
    rows = frame(values)
    try:
        expected = read_by_table(rows, where)
    except ArgumentError as error:  # a column without any value counts as text
        assert "division by zero" in str(error) or any(rows[name].isna().all() for name in rows)
        return
    assert {name: read(rows, where) for name, read in readers.items()} == dict.fromkeys(readers, expected)
