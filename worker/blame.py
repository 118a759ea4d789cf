"""Which images to try together, and whom to blame when the process dies: a pure state machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class Trial:
    """One batch on its way through a process that may die of it.

    A death whose image is known counts against that image: it is tried again alone, its neighbours
    together. After a death that could be anyone's each is tried alone, and who dies then has that one to
    answer for as well. So a deadly image costs ``limit`` deaths, or two where ``limit`` is one.

    Args:
        crashes: what each image has to answer for already; those that have any are tried alone.
        limit: this many condemn an image.

    Attributes:
        crashes: what each image has to answer for by now; an image that was answered is cleared.
    """

    def __init__(self, crashes: Sequence[int], limit: int) -> None:
        self.crashes = list(crashes)
        self._limit = limit
        clean = [place for place, count in enumerate(crashes) if not count]
        self._groups = deque([clean] if clean else [])
        self._groups.extend([place] for place, count in enumerate(crashes) if count)
        self._unexplained: set[int] = set()

    def next(self) -> list[int]:
        """Return the places to try now; ``[]`` when nothing is left."""
        return list(self._groups[0]) if self._groups else []

    def answered(self) -> None:
        """The process answered for what ``next`` said."""
        for place in self._groups.popleft():
            self.crashes[place] = 0

    def died(self, index: int | None) -> int | None:
        """The process died of what ``next`` said.

        Args:
            index: which of them it was at; None when that is not known.

        Returns:
            The place that is condemned and will not be tried again; None for none.
        """
        group = self._groups.popleft()
        if len(group) == 1:
            index = 0
        if index is None:
            self._unexplained = set(group)
            self._groups.extendleft([place] for place in reversed(group))
            return None
        place = group.pop(index)
        self.crashes[place] += 1
        if place in self._unexplained:
            self.crashes[place] += 1
            self._unexplained = set()
        if group:
            self._groups.appendleft(group)
        if self.crashes[place] >= self._limit:
            return place
        self._groups.append([place])
        return None
