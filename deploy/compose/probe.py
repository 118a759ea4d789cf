"""Asks the worker of this container: ``python -IS probe.py /readyz`` exits 0 where it answers 200."""

import os
import sys
from http.client import HTTPConnection, HTTPException

# Not urllib, which would send it through a proxy where the environment names one.
connection = HTTPConnection("127.0.0.1", int(os.environ.get("COUTURIER_HTTP_PORT") or 9464), timeout=3)
try:
    connection.request("GET", sys.argv[1])
    answer = connection.getresponse()
    sys.stdout.write(answer.read(200).decode(errors="replace"))
except (OSError, HTTPException) as error:
    sys.exit(f"no answer: {error}")
sys.exit(answer.status != 200)
