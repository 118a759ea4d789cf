"""The process that keeps one service, and ends it when the run's owner ends in whatever way.

``python -m tests.services.keeper NAME DIRECTORY OWNER_PID`` prints a verdict as JSON (``facts``, ``missing``
or ``error``) and leaves a process in the background that

- holds the server as its child and, for Kafka, the proxy: tests in several processes reach the same one;
- takes commands on ``DIRECTORY/NAME/keeper.sock``, one at a time;
- watches the owner, and on its end kills the server and removes the directory.

It is a session of its own, so Ctrl-C in a terminal does not reach it. Were it killed itself, the kernel would
kill the server (``PR_SET_PDEATHSIG``). It forks before it has any thread, and starts every server from its
main thread: that signal is sent when the *thread* that started the child ends.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import threading
import time
import traceback
from importlib import import_module
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from .engines import Server
from .errors import NotInstalledError

OWNER_POLL_S = 0.2


def main(name: str, directory: str, owner: str) -> None:
    """Fork; the parent prints the child's verdict once it has one, and the child keeps the service."""
    home = Path(directory) / name
    home.mkdir(mode=0o711)
    verdict, answer = os.pipe()
    if os.fork():
        os.close(answer)
        with os.fdopen(verdict) as pipe:
            sys.stdout.write(pipe.read() or json.dumps({"error": f"the keeper of {name} died at its start"}))
        return
    os.close(verdict)
    os.setsid()
    _redirect(home / "keeper.log")
    keeper = _Keeper(name, home)
    threading.Thread(target=keeper.watch, args=(int(owner),), daemon=True).start()
    with os.fdopen(answer, "w") as pipe:
        json.dump(keeper.open(), pipe)
    keeper.serve()


def _redirect(log: Path) -> None:
    """Let go of the starter's terminal and pipes."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


class _Keeper:
    def __init__(self, name: str, home: Path) -> None:
        self._name = name
        self._home = home
        self._server: Server | None = None
        self._listener: Listener | None = None

    def open(self) -> dict[str, Any]:
        """Climb the ladder; return the verdict."""
        try:
            module = import_module(f".{self._name}_server", __package__)
            server: Server = module.open_server(self._home)
        except NotInstalledError as error:
            return {"missing": str(error)}
        except Exception:  # whatever it is, the test has to show it
            return {"error": traceback.format_exc()}
        self._server = server
        self._listener = Listener(str(self._home / "keeper.sock"), "AF_UNIX", backlog=64)
        return {"facts": {**server.facts, "keeper_pid": os.getpid()}}

    def serve(self) -> None:
        """Take commands until the service is stopped."""
        while self._listener is not None:
            try:
                with self._listener.accept() as connection:
                    method, args = connection.recv()
                    connection.send(self._do(method, args))
            except (EOFError, OSError):  # the caller was killed in between
                traceback.print_exc()

    def _do(self, method: str, args: tuple[Any, ...]) -> tuple[bool, object]:
        try:
            if method == "stop":
                self._end()
                return True, None
            return True, getattr(self._server, method)(*args)
        except Exception:
            return False, traceback.format_exc()

    def _end(self) -> None:
        listener, self._listener = self._listener, None
        if self._server is not None:
            self._server.destroy()
        if listener is not None:
            listener.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def watch(self, owner: int) -> None:
        """End everything once the owner is gone; its last keeper removes what the run left."""
        _await_end(owner)
        self._end()
        if not any(self._home.parent.glob("*/keeper.sock")):
            shutil.rmtree(self._home.parent, ignore_errors=True)
        os._exit(0)


def _await_end(pid: int) -> None:
    if not hasattr(os, "pidfd_open"):  # not Linux
        while _alive(pid):
            time.sleep(OWNER_POLL_S)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([descriptor], [], [])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
