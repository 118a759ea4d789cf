"""The wire contract: requests become messages and back, whoever sent them."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from broker import Message
from client import ClassifyRequest, ClassifyResult
from client.schema import EXPIRES, SUBMITTED, ResultRow, encode_png, expires_at

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
MOMENTS = st.datetimes(timezones=st.just(UTC))


@given(
    image=st.binary(max_size=50),
    key=st.none() | TEXT,
    subject=st.none() | TEXT,
    attributes=st.dictionaries(TEXT.filter(lambda name: name != EXPIRES), TEXT, max_size=3),
    expires=st.none() | MOMENTS,
)
def test_a_request_survives_the_wire(
    image: bytes,
    key: str | None,
    subject: str | None,
    attributes: dict[str, str],
    expires: datetime | None,
) -> None:
    """What one side sends, the other side reads."""
    request = ClassifyRequest(image=image, key=key, subject=subject, attributes=attributes, expires=expires)
    message = request.to_message()
    assert message.data == image
    assert message.id == request.id
    assert message.type == SUBMITTED
    assert ClassifyRequest.from_message(message) == request


def test_a_foreign_message_is_accepted_as_it_is() -> None:
    """Another producer's type, media type and bytes that are not text are nobody's error."""
    message = Message(
        data=b"?",
        id="topic/3/17",
        type="com.example.photo",
        source="urn:camera",
        content_type="application/octet-stream",
        attributes={"site": "caf\udce9"},
    )
    request = ClassifyRequest.from_message(message)
    assert request.image == b"?"
    assert request.id == "topic/3/17"
    assert request.attributes == {"site": "caf\udce9"}
    assert request.to_message().attributes == message.attributes


def test_a_deadline_travels_with_its_zone() -> None:
    """Times of two continents are one time."""
    deadline = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=9)))
    message = ClassifyRequest(image=b"", expires=deadline).to_message()
    assert expires_at(message) == deadline


@pytest.mark.parametrize("text", ["", "tomorrow", "2030-13-01", "2030-01-01T00:00:00"])
def test_a_deadline_that_cannot_be_read_is_no_deadline(text: str) -> None:
    """A stranger's attribute expires nothing; without a zone nobody knows when it is."""
    assert expires_at(Message(data=b"", attributes={EXPIRES: text})) is None


def test_a_request_without_an_aware_time_is_refused() -> None:
    """Found where the request is made, not on the other side of the queue."""
    with pytest.raises(ValidationError):
        ClassifyRequest(image=b"", expires=datetime(2030, 1, 1))
    with pytest.raises(ValidationError):
        ClassifyRequest(image=b"", id="")


def test_every_request_has_an_id_of_its_own() -> None:
    """The id is the identity of the result."""
    assert len({ClassifyRequest(image=b"").id for _ in range(1000)}) == 1000


def test_row_and_result_have_the_same_fields() -> None:
    """The tuple that is stored and the model that is shown cannot drift apart."""
    assert ResultRow._fields == tuple(ClassifyResult.model_fields)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_encoded_pixels_decode_to_themselves(height: int, width: int, seed: int) -> None:
    """Any PNG reader gets back every pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    decoded = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    np.testing.assert_array_equal(decoded, pixels)


def test_only_gray_bytes_are_encoded() -> None:
    """Colour and floats are refused, not guessed at."""
    for wrong in (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), np.zeros((0, 2), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            encode_png(wrong)


def test_importing_the_contract_costs_no_model() -> None:
    """Other teams import ``client`` without torch, numpy or a database."""
    program = "import sys, client; client.ClassifyRequest(image=b''); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "onnxruntime", "sqlite3", "classifier", "PIL"}
