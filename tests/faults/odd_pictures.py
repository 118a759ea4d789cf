"""Files and headers that a worker meets in the wild: odd sizes and modes, bombs, liars, injections."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from .pictures import Item, garments, judged, large_png

INJECTED = "INJECTED line of a log"


def sizes(most: int) -> Iterator[Item]:
    """Yield row 32: 0.9 of what the backend takes, and all of it, as picture and as poison."""
    head = len(large_png(28, 1)) - 1
    for size in (most * 9 // 10, most):
        data = large_png(28, size - head)
        assert len(data) == size
        yield judged(data, "large body")
        yield judged(b"?" + data[1:], "large body")


def bombs() -> Iterator[Item]:
    """Yield row 34: little files that declare, or unpack to, very much."""
    for width, height in ((30_000, 30_000), (2**31 - 1, 1), (1, 65_500), (65_500, 1)):
        yield judged(_png(width, height, b"\0" * 100), "bomb")
    yield judged(_png(28, 28, bytes(64 * 1024 * 1024)), "bomb")


def shapes() -> Iterator[Item]:
    """Yield rows 35 and 36: sizes from one pixel up, every mode, animated, turned, with a profile."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(garments(10)[3][0]))
    photo = image.convert("RGB").resize((300, 200))
    transparent = image.convert("P")
    transparent.info["transparency"] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) << 8)
    modes = [image.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    for each in (*modes, deep, transparent, photo, image.resize((1, 1)), image.resize((1, 4096))):
        yield judged(_saved(each, "PNG"), "shape")
    yield judged(_saved(image.resize((1024, 1024)), "PNG"), "shape")
    yield judged(_saved(image, "PNG", save_all=True, append_images=[image.rotate(90)]), "shape")
    yield judged(_saved(image, "PNG", icc_profile=b"not a profile"), "shape")
    yield judged(_png(0, 0, b""), "shape")
    for each in (image, photo, photo.convert("CMYK")):
        yield judged(_saved(each, "JPEG", exif=exif.tobytes()), "shape")


def liars() -> Iterator[Item]:
    """Yield row 37: formats that are not accepted, and content types that say something else."""
    from PIL import Image

    image = Image.open(io.BytesIO(garments(10)[4][0])).convert("RGB")
    for kind in ("TIFF", "EPS", "WEBP", "GIF", "BMP", "ICO"):
        yield judged(_saved(image, kind), "liar", content_type="image/png")
    yield judged(_saved(image, "PNG"), "liar", content_type="application/pdf")
    yield judged(_saved(image, "JPEG"), "liar", content_type="image/png")
    for text in (b"", b"\0", b"<html>no</html>", b"PK\x03\x04", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"):
        yield judged(text, "liar")


def headers() -> Iterator[Item]:
    """Yield row 38: attributes that want to be obeyed, on good images and on poison."""
    good = garments(10)[5][0]
    wishes = {
        "crlf": f"a\r\n{INJECTED}",
        "sql": "'); DROP TABLE results; --",
        "jndi": "${jndi:ldap://127.0.0.1/a}",
        "couturier-reason": "forged",
        "couturier-attempts": "99",
        "couturier-retry-attempt": "99",
        "ce_id": "forged",
        "googclient_x": "forged",
        "googol": "forged",
        "content-type": "text/html",
        "empty": "",
        "text": "é漢字🧵",
    }
    for data in (good, b"poison"):
        yield judged(data, "headers", attributes=wishes)
        yield judged(data, "headers", attributes={f"h{n}": "x" * 100 for n in range(60)})
        yield judged(data, "headers", subject=f"subject\r\n{INJECTED}", key=f"key\r\n{INJECTED}")
        yield judged(data, "headers", subject="'); DROP TABLE results; --", key="k" * 500)


def _png(width: int, height: int, pixels: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _saved(image: object, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)  # type: ignore[attr-defined]
    return target.getvalue()
