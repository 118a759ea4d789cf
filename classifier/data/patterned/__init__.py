"""Patterned garments: a colour data set with one category and three tags, drawn by rules.

A silhouette of Fashion-MNIST is cut out, enlarged, dyed, printed with polka dots, flowers,
checks, several of them or none, shaded and photographed: another size, background, slight
turn and JPEG quality for each. The labels are true by construction, so the set tests and
shows the whole path for colour, several sizes and tags. It is no substitute for photos:
every garment is a cut-out seen from the front.

    python -m classifier.data.patterned OUT --rows 3000 --test-rows 1000
"""

from __future__ import annotations

from .drawing import Garment, draw, usable
from .marketplace import Row, garments, write_marketplace
from .styles import CATEGORIES, PRINTS, SHIFTED, STYLES, TAGS, TRAINED, Style

__all__ = [
    "CATEGORIES",
    "PRINTS",
    "SHIFTED",
    "STYLES",
    "TAGS",
    "TRAINED",
    "Garment",
    "Row",
    "Style",
    "draw",
    "garments",
    "usable",
    "write_marketplace",
]
