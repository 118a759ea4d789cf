"""The catalogue's query, and its Django form, return every product once, with the right image and text."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from client.sources.catalogue import query
from tests.services.postgres import PostgresService

PAGE = Path(__file__).resolve().parents[2] / "docs" / "catalogue.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
TABLES, INDEXES = (text for language, text in BLOCKS if language == "sql")
(MODELS,) = (text for language, text in BLOCKS if language == "py")
PRODUCTS = 100_000
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2007\u200a\u2028\u2029\u202f\u205f\u3000"

Row = tuple[int, str | None, str | None, str | None]
# Images are (index, URL), descriptions (country, original, translated), in the order of their ids.
CASES: dict[str, tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], str | None, str | None]] = {
    "nothing but a title": ([], [], None, None),
    "all of it": ([(0, "a")], [("us", "o", "t")], "a", "t"),
    "an image, no text": ([(0, "a")], [], "a", None),
    "a text, no image": ([], [("us", "o", "t")], None, "t"),
    "the first image is another": ([(1, "b"), (2, "c")], [], None, None),
    "index 0 is not the first": ([(2, "c"), (0, "a"), (1, "b")], [], "a", None),
    "an index below 0, and none": ([(-1, "x"), (None, "y")], [], None, None),
    "two images with index 0": ([(0, "first"), (0, "a")], [], "first", None),
    "the first of two has no URL": ([(0, None), (0, "a")], [], None, None),
    "an empty URL": ([(0, "")], [], "", None),
    "a text for others": ([], [("de", "o", "t"), (None, "o", "t"), ("", "o", "t")], None, None),
    "codes that look alike": ([], [("US", "o", "t"), ("usa", "o", "t"), (" us", "o", "t")], None, None),
    "others come first": ([], [("de", "x", "x"), ("us", "o", "t"), ("fr", "y", "y")], None, "t"),
    "two texts": ([], [("us", "o", "zz"), ("us", "p", "aa")], None, "zz"),
    "the first of two is not translated": ([], [("us", "o", None), ("us", "p", "t")], None, "o"),
    "not translated": ([], [("us", "o", None)], None, "o"),
    "translated to nothing": ([], [("us", "o", "")], None, "o"),
    "translated to blanks": ([], [("us", "o", "   ")], None, "o"),
    "translated to whitespace": ([], [("us", "o", SPACES)], None, "o"),
    "translated with blanks around": ([], [("us", "o", "\n t \xa0")], None, "\n t \xa0"),
    "translated to a full stop": ([], [("us", "o", f"{SPACES}.")], None, f"{SPACES}."),
    "no original": ([], [("us", None, "t")], None, "t"),
    "no text at all": ([], [("us", None, None)], None, None),
    "a blank original": ([], [("us", " ", "")], None, " "),
    "an empty original": ([], [("us", "", None)], None, ""),
    "no translation, no original": ([], [("us", None, " ")], None, None),
    "beyond ASCII": ([(0, "ü")], [("us", "o", "Größe 漢 👗 % %s \\ '")], "ü", "Größe 漢 👗 % %s \\ '"),
}


def put(url: str, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    """Fill the tables."""
    with psycopg.connect(url) as db, db.cursor() as cursor:
        for name, values in rows.items():
            with cursor.copy(f"COPY {name} FROM STDIN") as copy:
                for each in values:
                    copy.write_row(each)


def rows_of_cases() -> tuple[dict[str, list[tuple[Any, ...]]], list[Row]]:
    """The tables of all cases, and what is to come out."""
    tables: dict[str, list[tuple[Any, ...]]] = {"Product": [], "Image": [], "ProductDescription": []}
    expected: list[Row] = []
    for product, (title, (images, texts, url, text)) in enumerate(CASES.items(), 1):
        tables["Product"].append((product, title))
        for name, values in (("Image", images), ("ProductDescription", texts)):
            start = len(tables[name])
            tables[name] += [(start + n, product, *each) for n, each in enumerate(values)]
        expected.append((product, title, url, text))
    # A product without a title, and what belongs to no product.
    tables["Product"].append((1000, None))
    expected.append((1000, None, None, None))
    for product in (2000, None):
        tables["Image"].append((len(tables["Image"]), product, 0, "orphan"))
        tables["ProductDescription"].append((len(tables["ProductDescription"]), product, "us", "o", "t"))
    return tables, expected


def as_python_has_it(tables: dict[str, list[tuple[Any, ...]]]) -> list[Row]:
    """The exercise once more, in another language and without cleverness."""
    found: list[Row] = []
    for product, title in sorted(tables["Product"]):
        images = sorted(each for each in tables["Image"] if each[1] == product and each[2] == 0)
        texts = sorted(each for each in tables["ProductDescription"] if each[1:3] == (product, "us"))
        url = images[0][3] if images else None
        original, translated = texts[0][3:] if texts else (None, None)
        text = translated if translated is not None and translated.strip() else original
        found.append((product, title, url, text))
    return found


def random_rows() -> dict[str, list[tuple[Any, ...]]]:
    """Small tables full of ties, in any order; every id once, so that the lowest is one."""
    dice = random.Random(7)
    texts = ["", " ", "\t", "\xa0", "text", " text ", None]

    def ids(count: int) -> list[int]:
        return dice.sample(range(10 * count), count)

    return {
        "Product": [(each, dice.choice(["a", "", None])) for each in ids(300)],
        "Image": [
            (each, dice.randrange(3000), dice.randrange(2), dice.choice(["", "u", None]))
            for each in ids(5000)
        ],
        "ProductDescription": [
            (each, dice.randrange(3000), dice.choice(["us", "de"]), dice.choice(texts), dice.choice(texts))
            for each in ids(5000)
        ],
    }  # fmt: skip


def by_sql(url: str) -> list[Row]:
    """What the file returns, as it is."""
    with psycopg.connect(url) as db:
        cursor = db.execute(query().encode())
        assert [each.name for each in cursor.description or ()] == [
            "product_id",
            "title",
            "url",
            "description",
        ]
        return cursor.fetchall()


def by_django(url: str, folder: Path, program: str) -> Any:
    """Run a program with the models of the page; return the JSON that it prints."""
    (folder / "shop").mkdir(exist_ok=True)
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "models.py").write_text(MODELS)
    info = psycopg.conninfo.conninfo_to_dict(url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        **{"NAME": info["dbname"], "USER": info.get("user", ""), "PASSWORD": info.get("password", "")},
        **{"HOST": info.get("host", ""), "PORT": info.get("port", "")},
    }
    start = (
        "import django, json\nfrom django.conf import settings\n"
        f"settings.configure(DATABASES={{'default': {database!r}}}, INSTALLED_APPS=['shop'])\n"
        "django.setup()\nfrom shop.models import catalogue\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + program],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ROWS_BY_DJANGO = (
    "print(json.dumps([[row[name] for name in ('product_id', 'title', 'url', 'description')]"
    " for row in catalogue().iterator()]))"
)


@pytest.fixture
def url(postgres_service: PostgresService) -> str:
    """An empty catalogue, made by the statements of the page."""
    url = postgres_service.new_database()
    postgres_service.sql(TABLES, url)
    return url


def test_every_case_has_its_row(url: str, tmp_path: Path) -> None:
    """By the file, and by Django's form."""
    tables, expected = rows_of_cases()
    put(url, tables)
    assert by_sql(url) == expected
    assert as_python_has_it(tables) == expected
    assert [tuple(row) for row in by_django(url, tmp_path, ROWS_BY_DJANGO)] == expected


def test_any_catalogue_has_the_rows_that_plain_python_finds(url: str, tmp_path: Path) -> None:
    """Ties, gaps and blanks at random, in tables in no order."""
    tables = random_rows()
    put(url, tables)
    expected = as_python_has_it(tables)
    assert len({row[2:] for row in expected}) > 10
    assert by_sql(url) == expected
    assert [tuple(row) for row in by_django(url, tmp_path, ROWS_BY_DJANGO)] == expected


def test_an_empty_catalogue_has_no_rows(url: str) -> None:
    """And is no error."""
    assert by_sql(url) == []


def test_tables_without_keys_do_as_well(postgres_service: PostgresService) -> None:
    """Ids that are texts, nothing unique: still one row for each product."""
    url = postgres_service.new_database()
    postgres_service.sql(
        "CREATE TABLE Product (Id varchar(9), Title varchar(9));"
        " CREATE TABLE Image (Id varchar(9), ProductId varchar(9), ImageIndex smallint, Url varchar(9));"
        " CREATE TABLE ProductDescription (Id varchar(9), ProductId varchar(9), CountryCode char(4),"
        " OriginalText varchar(9), TranslatedText varchar(9));"
        " INSERT INTO Product VALUES ('b', 'B'), ('a', 'A');"
        " INSERT INTO Image VALUES ('2', 'a', 0, 'y'), ('1', 'a', 0, 'x'), ('1', 'a', 0, 'x');"
        " INSERT INTO ProductDescription VALUES ('1', 'b', 'us', 'o', ''), ('1', 'b', 'us', 'o', '')",
        url,
    )
    assert by_sql(url) == [("a", "A", "x", None), ("b", "B", None, "o")]


@pytest.fixture(scope="module")
def large(postgres_service: PostgresService) -> str:
    """100,000 products in no order, most with several images and descriptions; and the planner knows."""
    url = postgres_service.new_database()
    postgres_service.sql(
        f"""{TABLES};
        INSERT INTO Product SELECT 1 + n * 7919 % {PRODUCTS}, 'product ' || n
            FROM generate_series(1::bigint, {PRODUCTS}) n;
        INSERT INTO Image SELECT n, 1 + n * 7919 % {PRODUCTS}, (n - 1) / {PRODUCTS}, n || '.png'
            FROM generate_series(1::bigint, {2 * PRODUCTS}) n;
        INSERT INTO ProductDescription
            SELECT n, 1 + n * 104729 % {PRODUCTS}, (ARRAY['us', 'de'])[1 + n / {PRODUCTS}],
                   'original ' || n, CASE WHEN n % 5 = 0 THEN ' ' ELSE 'translated ' || n END
            FROM generate_series(1::bigint, {2 * PRODUCTS} - 1) n;
        ANALYZE""",
        url,
    )
    return url


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every step of a plan."""
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def check_plan(plan: dict[str, Any]) -> None:
    """No loop over products: each table is read by one step that no other repeats."""
    steps = list(nodes(plan))
    tables = sorted(each["Relation Name"] for each in steps if "Relation Name" in each)
    assert tables == ["image", "product", "productdescription"]
    assert not {each["Node Type"] for each in steps} & {"Nested Loop", "Materialize", "Memoize"}
    assert not any(each.get("Parent Relationship") in ("SubPlan", "InitPlan") for each in steps)


@pytest.mark.parametrize("indexed", [False, True], ids=["bare", "indexed"])
def test_a_large_catalogue_is_read_once(large: str, indexed: bool) -> None:
    """Whatever indexes there are; as a whole, and through a cursor, which is planned to start early."""
    with psycopg.connect(large) as db:
        if indexed:
            for statement in INDEXES.split(";"):
                db.execute(statement.encode())
        for start in ("EXPLAIN (FORMAT JSON) ", "EXPLAIN (FORMAT JSON) DECLARE c CURSOR FOR "):
            found = db.execute((start + query()).encode()).fetchone()
            assert found is not None
            check_plan(found[0][0]["Plan"])
        count = (
            f"SELECT count(*), count(url), count(description), count(DISTINCT product_id) FROM ({query()}) c"
        )
        assert db.execute(count.encode()).fetchone() == (PRODUCTS, PRODUCTS, PRODUCTS - 1, PRODUCTS)
        db.rollback()


def test_djangos_form_looks_up_by_index(large: str, tmp_path: Path) -> None:
    """With the indexes of the page: products are read once, and per product only what belongs to it."""
    with psycopg.connect(large) as db:
        for statement in INDEXES.split(";"):
            db.execute(statement.encode())
    plan = by_django(large, tmp_path, "print(catalogue().explain(format='json'))")[0]["Plan"]
    lookups = [each for each in nodes(plan) if each.get("Relation Name") in ("image", "productdescription")]
    assert len(lookups) == 2
    for each in lookups:
        assert each["Node Type"] in ("Index Scan", "Index Only Scan")
        assert "product" in each["Index Cond"]
    assert max(each["Total Cost"] for each in lookups) < 100
