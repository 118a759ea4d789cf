"""A product catalogue in PostgreSQL as a source of images, with what it says of each product."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from uuid import UUID, uuid5

from broker.drivers.options import public_url

from ..errors import SourceError, StoreUnavailable
from ..results.postgres import login, login_problem
from ..schema import ClassifyRequest
from .base import Submission
from .fetching import MAX_URL_CHARACTERS, Fetcher, Picture
from .web import Unfetchable

if TYPE_CHECKING:
    import psycopg

# Characters; longer texts are cut. What shops' feeds may say of a product, for a title three times that.
# Source: https://support.google.com/merchants/answer/7052112 (title 150, description 5,000 characters).
MAX_TITLE, MAX_DESCRIPTION = 500, 5_000
_CUT = "…"
# Images that are fetched at once; with `MAX_IMAGE_BYTES` it bounds the memory.
_PARALLEL = 16
_ROWS_AT_ONCE = 200
# For the first rows, where the server may have to sort; without the indexes of the query's file, that is.
_STATEMENT_S = 300.0
_ORIGIN = "CATALOGUE_URL"
_IDS = UUID("0d1f6d0e-3a55-5a0e-9a43-6a2a5c5a7f21")


class Product(NamedTuple):
    """One row of the catalogue; texts that may be too long have one character more than is kept."""

    product_id: str
    title: str | None
    url: str | None
    description: str | None


def query() -> str:
    """Return the statement of ``product_catalogue.sql``, without its last semicolon."""
    text = files(__package__).joinpath("product_catalogue.sql").read_text(encoding="utf-8")
    return text.strip().removesuffix(";")


class Catalogue:
    """The images of a catalogue's products; iterate to get one ``Submission`` for each that can be had.

    The product's id becomes the subject, title and description the context. The message id follows from
    database, product and image, so a product that is sent again has one row, and a new image a new one.
    Products come through a cursor of the server, images as they arrive: memory does not grow with either.

    Args:
        url: ``postgresql://user:password@host/database``.
        fetcher: gets the images.
        most: products at most.
        on_failure: called with one line for every image that cannot be had.

    Attributes:
        products: read so far.
        without_url: products that have no image with index 0, or one without a URL.
        failed: images that cannot be had, by reason.
        shortened: products with a title or a description that was cut.

    Raises:
        ValueError: the URL does not work.
    """

    def __init__(
        self,
        url: str,
        fetcher: Fetcher,
        most: int | None = None,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._url = url
        self._place = public_url(url)
        self._login = {
            **login(
                url,
                {
                    "default_transaction_read_only": "on",
                    "statement_timeout": f"{_STATEMENT_S * 1000:.0f}",
                    "idle_in_transaction_session_timeout": "0",  # between rows we wait for images
                },
                _ORIGIN,
            ),
            "target_session_attrs": "any",
            "client_encoding": "utf8",
        }
        self._fetcher = fetcher
        self._most = most
        self._on_failure = on_failure
        self._closed = False
        self.products = self.without_url = self.shortened = 0
        self.failed: Counter[str] = Counter()

    def close(self) -> None:
        """End what is being fetched, from any thread or signal; whoever iterates gets what has arrived."""
        self._closed = True
        self._fetcher.close()

    def __iter__(self) -> Iterator[Submission]:
        """Yield the images, in no particular order.

        Raises:
            ValueError: the login does not work.
            SourceError: the database is away or fails, or holds no catalogue.
        """
        with self._connected() as db:
            source = f"/couturier/catalogue/{quote(db.info.dbname, safe='')}"
            for product, picture in self._fetched(self._products(db)):
                yield Submission(self._request(product, picture, source))

    def _connected(self) -> psycopg.Connection[Any]:
        import psycopg

        try:
            return psycopg.connect(**self._login)
        except psycopg.Error as error:
            problem = login_problem(error, self._url, _ORIGIN)
            if isinstance(problem, StoreUnavailable):
                problem = SourceError(str(problem))
            raise problem from error

    def _products(self, db: psycopg.Connection[Any]) -> Iterator[Product]:
        from psycopg import Error, errors

        statement = (
            f"SELECT product_id::text, left(title, {MAX_TITLE + 1}), left(url, {MAX_URL_CHARACTERS + 1}),"  # noqa: S608
            f" left(description, {MAX_DESCRIPTION + 1}) FROM ({query()}) AS catalogue"
            f"{'' if self._most is None else f' LIMIT {self._most}'}"
        )
        try:
            with db.cursor(name="couturier_catalogue") as cursor:
                cursor.itersize = _ROWS_AT_ONCE
                cursor.execute(statement.encode())
                for row in cursor:
                    yield Product(*row)
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction) as error:
            raise SourceError(
                f"{self._place}: {_words(error)}; a catalogue has the tables, or views, Product (Id, Title),"
                " Image (Id, ProductId, ImageIndex, Url) and ProductDescription (Id, ProductId, CountryCode,"
                " OriginalText, TranslatedText)"
            ) from error
        except errors.InsufficientPrivilege as error:
            raise SourceError(f"{self._place}: {_words(error)}; GRANT SELECT on it to this user") from error
        except (Error, UnicodeError) as error:
            raise SourceError(
                f"{self._place}: {_words(error)}; run the same command again: what was sent keeps its id"
            ) from error

    def _fetched(self, products: Iterable[Product]) -> Iterator[tuple[Product, Picture]]:
        """Yield products with their images as these arrive."""
        pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch")
        waiting: dict[Future[Picture], Product] = {}
        try:
            for product in products:
                if self._closed:
                    break
                self.products += 1
                if product.url is None or not product.url.strip():
                    self.without_url += 1
                    continue
                waiting[pool.submit(self._fetcher.fetch, product.url)] = product
                if len(waiting) == _PARALLEL:
                    yield from self._arrived(waiting)
            while waiting:
                yield from self._arrived(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _arrived(self, waiting: dict[Future[Picture], Product]) -> Iterator[tuple[Product, Picture]]:
        """Take what is done out of ``waiting``; one at least."""
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            product = waiting.pop(future)
            try:
                picture = future.result()
            except Unfetchable as error:
                if self._closed:
                    continue
                self.failed[error.reason] += 1
                self._on_failure(f"product {product.product_id}: {error} ({public_url(product.url or '')})")
                continue
            yield product, picture

    def _request(self, product: Product, picture: Picture, source: str) -> ClassifyRequest:
        texts = {
            "title": _cut(product.title, MAX_TITLE),
            "description": _cut(product.description, MAX_DESCRIPTION),
        }
        self.shortened += texts != {"title": product.title, "description": product.description}
        digest = hashlib.sha256(picture.data).hexdigest()
        return ClassifyRequest(
            image=picture.data,
            content_type=picture.content_type,
            subject=product.product_id,
            id=str(uuid5(_IDS, f"{source}\n{product.product_id}\n{digest}")),
            source=source,
            context={name: text for name, text in texts.items() if text is not None},
        )


def _cut(text: str | None, most: int) -> str | None:
    return text if text is None or len(text) <= most else text[: most - 1] + _CUT


def _words(error: Exception) -> str:
    return " ".join(str(error).split())
