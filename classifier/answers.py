"""From rows of images to answers, and from answers to the columns of a table.

Rows stream in bounded batches; one that has no image, or a bad one, has an answer that says why and
changes nothing for its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .bundle import Manifest
from .errors import DataError
from .images import InvalidImage
from .predict import Classifier, Prediction

Answer = Prediction | InvalidImage | DataError
# One call of the network, and what is held in memory as encoded files at once.
BATCH_IMAGES, BATCH_BYTES = 64, 64 * 1024 * 1024


def classify(
    classifier: Classifier, rows: Iterable[tuple[Any, bytes | DataError]]
) -> Iterator[tuple[Any, Answer]]:
    """Yield (key, answer) for every row, in order.

    Args:
        classifier: the model.
        rows: (key, encoded image or why there is none), such as :class:`classifier.data.Rows`.

    Raises:
        DataError: the source itself went away.
    """
    for batch in _batches(rows):
        answers = iter(classifier.predict([data for _, data in batch if isinstance(data, bytes)]))
        for key, data in batch:
            yield key, data if isinstance(data, DataError) else next(answers)


def why_not(answer: InvalidImage | DataError) -> str:
    """One line for people: why a row has no prediction."""
    return str(answer) if isinstance(answer, DataError) else f"refused, {answer.reason}: {answer.detail}"


class AnswerTable:
    """The columns of the table of answers, one row for each that is added, null where there is no prediction.

    Columns: the key under its own name, ``category1`` and ``category2`` (the two most probable classes), each
    tag under its own name (1 yes, 0 no). With ``details`` also confidences, group, outlier score, abstention,
    answer set (joined with ``|``), probabilities of the tags, and ``error``: why there is no prediction.

    Attributes:
        columns: name -> values.

    Raises:
        DataError: two columns would have the same name.
    """

    def __init__(self, key_name: str, manifest: Manifest, details: bool = False) -> None:
        self._values = _columns(manifest, details)
        self._key_name, self._errors = key_name, details
        names = [key_name, *(name for name, _ in self._values), *(["error"] if details else [])]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(
                f"two columns of the predictions would be called {twice[0]!r}; rename that one of the table"
            )
        self.columns: dict[str, list[Any]] = {name: [] for name in names}

    def add(self, key: Any, answer: Answer) -> None:
        """Append one row."""
        self.columns[self._key_name].append(key)
        for name, value in self._values:
            self.columns[name].append(value(answer) if isinstance(answer, Prediction) else None)
        if self._errors:
            self.columns["error"].append(None if isinstance(answer, Prediction) else why_not(answer))


def _columns(manifest: Manifest, details: bool) -> list[tuple[str, Callable[[Prediction], Any]]]:
    """Name and value of every column but the key and the error."""
    columns: list[tuple[str, Callable[[Prediction], Any]]] = [
        ("category1", lambda answer: answer.label),
        ("category2", lambda answer: answer.runner_up),
    ]
    columns += [(tag.name, _has_tag(tag.name)) for tag in manifest.tags]
    if not details:
        return columns
    columns += [
        ("confidence", lambda answer: answer.confidence),
        ("runner_up_confidence", lambda answer: answer.runner_up_confidence),
        ("group", lambda answer: answer.group_label),
        ("outlier", lambda answer: answer.outlier),
        ("abstained", lambda answer: answer.abstained),
        ("why", lambda answer: answer.why),
        ("answer_set", lambda answer: "|".join(answer.answer_set)),
    ]
    places = enumerate(manifest.tags)
    return columns + [(f"{tag.name} probability", _tag_probability(place)) for place, tag in places]


def _has_tag(name: str) -> Callable[[Prediction], int]:
    return lambda answer: int(name in answer.tags)


def _tag_probability(place: int) -> Callable[[Prediction], float]:
    return lambda answer: answer.tag_probabilities[place]


def _batches(
    rows: Iterable[tuple[Any, bytes | DataError]],
) -> Iterator[Sequence[tuple[Any, bytes | DataError]]]:
    batch: list[tuple[Any, bytes | DataError]] = []
    held_bytes = 0
    for key, data in rows:
        batch.append((key, data))
        held_bytes += len(data) if isinstance(data, bytes) else 0
        if len(batch) == BATCH_IMAGES or held_bytes >= BATCH_BYTES:
            yield batch
            batch, held_bytes = [], 0
    if batch:
        yield batch
