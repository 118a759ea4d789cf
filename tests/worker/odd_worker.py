"""A worker whose engine obeys the marks on images: ``odd_worker.py --ready-file PATH``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from odd_engine import COMMAND

from worker import Launch, run
from worker.log import configure
from worker.settings import load

if __name__ == "__main__":
    settings = load()
    configure(settings.log_level, settings.log_format)
    sys.exit(asyncio.run(run(settings, Launch(Path(sys.argv[2]), engine=COMMAND))))
