"""Draws the pictures of the documentation: ``python docs/images/draw.py`` writes the SVG files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

Point = tuple[float, float]
BLUE, GREEN, SAND, ROSE, GRAY, WHITE = "#e3edf8", "#e2f2e6", "#fdf1da", "#f9e3e3", "#eef0f3", "#ffffff"
LINE = "#5b6b7c"
STYLE = """
text { font-family: Helvetica, Arial, 'Liberation Sans', sans-serif; fill: #1c2733; }
.title { font-size: 15px; font-weight: bold; } .line { font-size: 12.5px; }
.said { font-size: 12px; fill: #41505f; }
.head { font-size: 12px; font-weight: bold; fill: #5b6b7c; letter-spacing: .08em; }
"""


class Picture:
    """Boxes and arrows on a white sheet.

    Args:
        width: of the sheet, pixels.
        height: of the sheet, pixels.
        about: what it shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, about: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(about)}</title><style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
            f' orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="{WHITE}"/>',
        ]

    def box(self, place: tuple[float, float, float, float], fill: str, title: str, *lines: str) -> None:
        """Draw a box at ``place`` (x, y, width, height) with a title and lines below it."""
        x, y, width, height = place
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="{LINE}"/>'
        )
        top = y + (height - 18 * len(lines)) / 2 + 5
        self.text((x + width / 2, top), title, "title", "middle")
        for number, line in enumerate(lines, 1):
            self.text((x + width / 2, top + 18 * number), line, "line", "middle")

    def area(self, place: tuple[float, float, float, float], head: str, fill: str = GRAY) -> None:
        """Draw a ground for several boxes, with a heading."""
        x, y, width, height = place
        self._parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{fill}"/>')
        self.text((x + 14, y + 20), head.upper(), "head")

    def text(self, at: Point, text: str, kind: str = "said", anchor: str = "start") -> None:
        """Write at a place."""
        self._parts.append(
            f'<text x="{at[0]}" y="{at[1]}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(
        self, points: Sequence[Point], said: str = "", at: Point | None = None, dashed: bool = False
    ) -> None:
        """Draw an arrow through points, and what it carries at a place."""
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#tip)"{dash}/>'
        )
        if said and at:
            self.text(at, said, "said", "middle")

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text("\n".join([*self._parts, "</svg>"]) + "\n")


def architecture() -> Picture:
    """The whole system: how an image becomes a row, and what keeps it from being lost."""
    p = Picture(
        1060, 560, "couturier: clients publish images to a topic, workers classify them and write rows"
    )
    _clients_and_broker(p)
    _workers_and_results(p)
    _proof_and_model(p)
    p.arrow([(964, 406), (964, 362), (682, 362), (682, 332)], "loaded and verified", (824, 356))
    p.arrow([(200, 332), (200, 406)], dashed=True)
    p.arrow([(590, 332), (590, 360), (390, 360), (390, 406)], dashed=True)
    return p


def _clients_and_broker(p: Picture) -> None:
    p.area((16, 16, 216, 330), "clients")
    p.box((30, 46, 188, 64), BLUE, "client library", "publish, submit, results")
    p.box((30, 122, 188, 64), BLUE, "couturier client send", "files, zips, catalogue, mock")
    p.box((30, 198, 188, 64), BLUE, "couturier gateway", "POST image, GET result")
    p.box((30, 274, 188, 58), SAND, "ledger", "what was sent")
    p.area((302, 16, 190, 330), "broker · one variable")
    p.box((316, 46, 162, 128), GREEN, "topic images", "Kafka", "or Google Pub/Sub", "or SQLite, embedded")
    letters = ("images.classifiers.dlq", "bytes as they came,", "with the reason")
    p.box((316, 236, 162, 96), ROSE, "dead letters", *letters)
    p.arrow([(218, 78), (316, 78)], "publish", (267, 71))
    p.arrow([(218, 154), (316, 120)])
    p.arrow([(218, 230), (296, 230), (296, 150), (316, 150)])
    p.arrow([(397, 236), (397, 174)], "replay", (423, 210))


def _workers_and_results(p: Picture) -> None:
    p.area((562, 16, 240, 330), "workers · 1 … N processes")
    loop = ("micro-batches, retries,", "outages, drain,", "settles when stored")
    p.box((576, 46, 212, 96), BLUE, "processing loop", *loop)
    engine = ("decode, predict", "ONNX Runtime,", "OpenVINO or torch;", "may crash, is restarted")
    p.box((576, 200, 212, 132), BLUE, "engine · own process", *engine)
    p.area((872, 16, 172, 330), "results")
    p.box((886, 46, 144, 96), GREEN, "table results", "PostgreSQL", "or SQLite", "one row per id")
    p.box((886, 200, 144, 60), GREEN, "topic, JSON lines", "answers as a stream")
    p.arrow([(478, 84), (576, 84)], "receive", (527, 77))
    p.arrow([(576, 118), (478, 118)], "ack", (527, 133))
    p.arrow([(640, 142), (640, 200)])
    p.arrow([(724, 200), (724, 142)])
    p.text((634, 175), "batch", "said", "end")
    p.text((730, 175), "labels")
    p.arrow([(788, 94), (886, 94)], "write", (837, 87))
    p.arrow([(788, 120), (838, 120), (838, 230), (886, 230)])
    p.arrow([(576, 136), (540, 136), (540, 270), (478, 270)], "cannot", (520, 262))
    p.text((509, 286), "succeed", "said", "middle")


def _proof_and_model(p: Picture) -> None:
    p.area((16, 376, 500, 168), "proof and watch")
    books = ("published = stored + letters", "+ expired + in flight + lost;")
    p.box((30, 406, 224, 120), SAND, "couturier audit", *books, "exit 0 when nothing is missing")
    watch = ("/metrics of every worker,", "alerts with a runbook;", "scales on drain seconds")
    p.box((278, 406, 224, 120), SAND, "Prometheus, Grafana, KEDA", *watch)
    p.area((546, 376, 498, 168), "model")
    p.box((560, 406, 146, 120), GREEN, "any data set", "folders, tables,", "zip, IDX,", "Fashion-MNIST")
    p.box((732, 406, 140, 120), BLUE, "couturier train", "evaluate,", "report,", "compare")
    p.box((898, 406, 132, 120), GREEN, "bundle", "ONNX, manifest,", "hashes,", "no pickle")
    p.arrow([(706, 466), (732, 466)])
    p.arrow([(872, 466), (898, 466)])


def google_cloud() -> Picture:
    """The deployment plan's services."""
    p = Picture(1060, 590, "couturier on Google Cloud: from commit to canary, and the way of an image")
    _commit_to_canary(p)
    _region(p)
    _watch_and_model(p)
    p.arrow([(940, 132), (940, 160), (640, 160), (640, 204)])
    p.arrow([(964, 476), (964, 408)])
    p.arrow([(560, 408), (560, 434), (140, 434), (140, 476)], dashed=True)
    p.text((350, 430), "metrics", "said", "middle")
    return p


def _commit_to_canary(p: Picture) -> None:
    p.area((16, 16, 1028, 132), "from commit to canary")
    boxes = (
        ("GitHub", "commit, review"),
        ("Cloud Build", ".ci/run, image,", "SBOM, pip-audit"),
        ("Artifact Registry", "image by digest,", "signed"),
        ("staging", "1,000 images,", "audit exits 0"),
        ("Cloud Deploy", "canary, then all;", "one command back"),
    )
    for number, (title, *lines) in enumerate(boxes):
        x = 30 + number * 204
        p.box((x, 46, 178, 86), GRAY if number else BLUE, title, *lines)
        if number:
            p.arrow([(x - 26, 89), (x, 89)])


def _region(p: Picture) -> None:
    p.area((16, 172, 1028, 250), "region, private network", "#f6f8fa")
    p.box((30, 250, 150, 92), BLUE, "clients", "shops, services,", "gateway behind", "a load balancer")
    p.box((250, 204, 172, 92), GREEN, "Pub/Sub: images", "subscription", "classifiers,", "7 days kept")
    p.box(
        (250, 316, 172, 92),
        ROSE,
        "Pub/Sub: dead letters",
        "images.classifiers.dlq,",
        "subscription",
        "operators",
    )
    p.box(
        (496, 204, 228, 204),
        BLUE,
        "GKE Autopilot",
        "workers: stable and canary,",
        "KEDA: 2 … 48 pods,",
        "budget for disruptions,",
        "Workload Identity, no keys;",
        "updates drain,",
        "Job: topics",
    )
    p.box((800, 204, 230, 92), GREEN, "Cloud SQL for PostgreSQL", "table results, two zones,", "30 days kept")
    p.box((800, 316, 230, 92), GREEN, "Cloud Storage", "bundles, data sets,", "bodies over 10 MB")
    p.arrow([(180, 280), (250, 262)], "publish", (212, 258))
    p.arrow([(422, 240), (496, 240)], "receive", (459, 233))
    p.arrow([(496, 352), (422, 352)], "letters", (459, 345))
    p.arrow([(336, 316), (336, 296)], "replay", (364, 311))
    p.arrow([(724, 250), (800, 250)], "rows", (762, 243))
    p.arrow([(800, 362), (724, 362)], "bundle", (762, 355))


def _watch_and_model(p: Picture) -> None:
    p.area((16, 446, 500, 128), "watch")
    p.box((30, 476, 222, 84), SAND, "Managed Prometheus", "metrics, alerts,", "the scaling signal")
    p.box(
        (276, 476, 226, 84),
        SAND,
        "Grafana, Cloud Trace",
        "dashboard, one message's",
        "way; Cloud Logging: JSON",
    )
    p.area((546, 446, 498, 128), "model")
    p.box((560, 476, 146, 84), BLUE, "GKE Job", "train, evaluate")
    p.box((732, 476, 140, 84), BLUE, "MLflow", "registry, runs,", "champion alias")
    p.box((898, 476, 132, 84), GREEN, "gate", "better, verified,", "shadowed")
    p.arrow([(706, 518), (732, 518)])
    p.arrow([(872, 518), (898, 518)])


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    architecture().write(here / "architecture.svg")
    google_cloud().write(here / "google-cloud.svg")
