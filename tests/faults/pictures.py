"""What is sent: garments with the answer of the shipped model, poison of every kind, odd files."""

from __future__ import annotations

import io
import itertools
import random
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from broker import Message

POISON = "invalid-image"


@dataclass(frozen=True, slots=True)
class Item:
    """One message to be sent, and what must become of it.

    Attributes:
        data: the body.
        label: of its row; None for a dead letter.
        reason: of its dead letter; None for a row.
        kind: the sender's word for it.
        id: of the message.
        key: of the message.
        subject: of the message.
        attributes: of the message.
        content_type: as claimed.
    """

    data: bytes
    label: str | None
    reason: str | None
    kind: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    key: str | None = None
    subject: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "image/png"

    def message(self) -> Message:
        """Return it as it is published."""
        return Message(
            data=self.data,
            id=self.id,
            key=self.key,
            subject=self.subject,
            attributes=self.attributes,
            content_type=self.content_type,
            type="dev.couturier.image.submitted.v1",
            source="/tests/faults",
        )


@cache
def garments(count: int) -> tuple[tuple[bytes, str], ...]:
    """Return validation images as PNG, with the label that the shipped model gives offline."""
    from classifier import Prediction
    from classifier.data import validation_set
    from client.schema import encode_png

    images = [encode_png(pixels) for pixels in validation_set().images[:count]]
    answers = [each for first in range(0, count, 500) for each in judge(images[first : first + 500])]
    return tuple(
        (image, answer.label)
        for image, answer in zip(images, answers, strict=True)
        if isinstance(answer, Prediction)
    )


def judge(images: list[bytes]) -> list[object]:
    """Return the shipped model's answers, in this process, without broker or worker."""
    return list(_classifier().predict(images))  # type: ignore[attr-defined]


def judged(data: bytes, kind: str, **fields: object) -> Item:
    """Return an item whose outcome the shipped model decides offline."""
    from classifier import Prediction

    (answer,) = judge([data])
    if isinstance(answer, Prediction):
        return Item(data, answer.label, None, kind, **fields)  # type: ignore[arg-type]
    return Item(data, None, POISON, kind, **fields)  # type: ignore[arg-type]


def stream(seed: int, poison: float = 0.0, duplicates: float = 0.0, variety: int = 500) -> Iterator[Item]:
    """Yield items without end: garments, a share of poison, and a share of ids that were sent shortly before.

    Args:
        seed: decides everything but the ids.
        poison: share of messages that are no image.
        duplicates: share of messages that repeat one of the last thousand.
        variety: how many different garments.
    """
    chance = random.Random(seed)
    good, bad = garments(variety), poisons(variety)
    recent: list[Item] = []
    prefix = uuid.uuid4().hex[:12]
    for number in itertools.count():
        draw = chance.random()
        if draw < duplicates and recent:
            yield chance.choice(recent)
            continue
        name = f"{prefix}-{number:08d}"
        if draw < duplicates + poison:
            item = Item(chance.choice(bad), None, POISON, "poison", name, name)
        else:
            data, label = chance.choice(good)
            item = Item(data, label, None, "good", name, name)  # its key spreads it over the partitions
        if len(recent) < 1000:
            recent.append(item)
        else:
            recent[number % 1000] = item
        yield item


@cache
def poisons(count: int) -> tuple[bytes, ...]:
    """Return files that are no image, of all kinds that the client can make."""
    from client.sources.damage import DAMAGES, damage

    chance = random.Random(count)
    found = [damage(data, DAMAGES[n % len(DAMAGES)], chance) for n, (data, _) in enumerate(garments(count))]
    return tuple(found)


def mutants(count: int, seeds: int) -> list[Item]:
    """Return damaged copies of files of many modes; the shipped model says offline which still work."""
    rng = random.Random(33)
    originals = _seeds(seeds)
    return [judged(_mutate(originals[number % seeds], rng), "mutant") for number in range(count)]


def large_png(side: int, padding: int = 0, level: int = 1) -> bytes:
    """Return a gray PNG, ``side`` pixels wide and high, of at least ``padding`` bytes."""
    row = b"\0" + bytes(side)
    body = zlib.compress(row * side, level)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", body)]
    if padding:
        chunks.insert(1, (b"teXt", random.Random(padding).randbytes(padding)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in (*chunks, (b"IEND", b"")))


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@cache
def _classifier() -> object:
    from classifier import Classifier

    return Classifier.load()


def _seeds(count: int) -> list[bytes]:
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(garments(10)[3][0]))
    photo = image.convert("RGB").resize((200, 150))
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) << 8)
    modes = [
        image,
        image.convert("RGBA"),
        image.convert("P"),
        image.convert("1"),
        image.convert("LA"),
        deep,
        photo,
    ]
    found = [_saved(each, "PNG") for each in modes]
    found += [
        _saved(image, "JPEG"),
        _saved(photo, "JPEG", progressive=True),
        _saved(photo.convert("CMYK"), "JPEG"),
    ]
    return found[:count]


def _saved(image: object, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)  # type: ignore[attr-defined]
    return target.getvalue()


def _mutate(data: bytes, rng: random.Random) -> bytes:
    content, at = bytearray(data), rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[at:]
    elif kind == 2:
        content[at:at] = rng.randbytes(rng.randint(1, 50))
    else:
        content[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(content)
