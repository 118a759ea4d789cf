"""One send, afterwards: what became of every message, how accurate and how fast it was."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from broker import Broker

from .audit import Balance, Books, balance
from .contact_sheet import Tile
from .dlq import Letter, letters
from .ledger import Entry
from .results import Results
from .schema import ResultRow


@dataclass(frozen=True, slots=True)
class Run:
    """What one send left behind.

    Attributes:
        entries: the ledger's, message id to entry.
        rows: its results.
        letters: its dead letters.
        books: balanced by id.
    """

    entries: Mapping[str, Entry]
    rows: Sequence[ResultRow]
    letters: Sequence[Letter]
    books: Balance

    @property
    def planted(self) -> set[str]:
        """Ids of the images that were damaged on purpose."""
        return {each.message_id for each in self.entries.values() if each.kind == "bad"}

    @property
    def as_planned(self) -> bool:
        """Nothing is lost or doubled, and exactly the planted images are dead letters."""
        return self.books.balanced and {each.message_id for each in self.letters} == self.planted

    @property
    def right(self) -> int:
        """Rows whose label is the truth."""
        return sum(row.label == self.truth(row) for row in self.rows)

    @property
    def last_stored(self) -> float | None:
        """When the last row was handed to the database, Unix seconds."""
        return max((datetime.fromisoformat(row.created_at).timestamp() for row in self.rows), default=None)

    def truth(self, row: ResultRow) -> str | None:
        """Return the true label of a row; None where nobody knows it."""
        return self.entries[row.message_id].label

    def recalls(self) -> dict[str, tuple[float, int]]:
        """Return the recall and the number of members of every true class."""
        members = Counter(truth for row in self.rows if (truth := self.truth(row)) is not None)
        hits = Counter(row.label for row in self.rows if row.label == self.truth(row))
        return {name: (hits[name] / count, count) for name, count in sorted(members.items())}

    def latency_ms(self) -> dict[str, float]:
        """Return p50, p95 and p99 from published to stored, by the nearest rank, milliseconds."""
        ordered = sorted(row.latency_s * 1000 for row in self.rows)
        if not ordered:
            return {}
        return {f"p{share}": ordered[max(0, -(-share * len(ordered) // 100) - 1)] for share in (50, 95, 99)}

    def tiles(self, images: Mapping[str | None, bytes], most: int, most_wrong: int) -> list[Tile]:
        """Return tiles of a contact sheet, by true class.

        Args:
            images: subject to encoded image.
            most: how many in all.
            most_wrong: how many mistakes among them.
        """
        known = [row for row in self.rows if row.subject in images]
        wrong = [row for row in known if row.label != self.truth(row)][:most_wrong]
        right = [row for row in known if row.label == self.truth(row)][: most - len(wrong)]
        tiles = [
            Tile(images[row.subject], row.label or "", self.truth(row) or "", row.confidence or 0.0)
            for row in (*wrong, *right)
        ]
        return sorted(tiles, key=lambda tile: tile.truth)


async def collect(broker: Broker, topic: str, group: str, results: Results, entries: Sequence[Entry]) -> Run:
    """Look up what became of the messages of one send.

    Args:
        broker: open.
        topic: where they were sent.
        group: whose workers wrote ``results``.
        results: open for reading.
        entries: of the ledger.

    Raises:
        NotFound: topic or group was never ensured.
        ClientError: the results cannot be read.
    """
    mine = {each.message_id: each for each in entries}
    dead = [each async for each in letters(broker, topic, group) if each.message_id in mine]
    unsettled = {each.message.id async for each in broker.browse(topic, group)}
    rows = await asyncio.to_thread(lambda: list(results.find(mine)))
    duplicate_rows = await asyncio.to_thread(results.duplicates)
    books = Books(
        confirmed={each.message_id for each in entries if each.state == "confirmed"},
        unconfirmed={each.message_id for each in entries if each.state == "sent"},
        unsettled=unsettled & mine.keys(),
        dead={each.message_id for each in dead},
        stored={row.message_id for row in rows},
        expired={row.message_id for row in rows if row.status == "expired"},
        duplicate_rows=duplicate_rows,
    )
    return Run(mine, rows, dead, balance(books))
