"""What ``couturier doctor --self`` asks of the workers of this machine, and of the machine under them."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from broker.settings import broker_url, home
from client.workers import Answer, ask, ask_all

from .doctor_broker import Finding

if TYPE_CHECKING:
    from .settings import WorkerSettings

_MIB = 1024 * 1024
# A worker and its engine with the shipped model, at work on whole batches, take less than 400 MiB.
_WORKER_BYTES = 512 * _MIB
_LOW_DISK_BYTES, _FULL_DISK_BYTES = 1024 * _MIB, 100 * _MIB
# Of a worker: brokers, databases, its engine and the clients of its HTTP server.
_FILES = 1024
_CGROUP = Path("/sys/fs/cgroup")
_TIME_ERROR = 5


def examine_self(settings: WorkerSettings) -> list[Finding]:
    """Look at the workers that this machine's state directory lists, and at what they stand on."""
    answers = ask_all(())
    count = max(1, len(answers))
    return [
        *_workers(answers),
        _files(),
        *_disks(settings),
        _memory(count),
        _cores(count),
        _clock(),
    ]


def _workers(answers: Sequence[Answer]) -> Iterator[Finding]:
    if not answers:
        yield Finding("workers", "missing", "none is listed on this machine", "`couturier worker` starts one")
        return
    for each in answers:
        yield _worker(each)
    bodies = [each.body for each in answers if "state" in each.body]
    models = {(each["model"]["sha256"], each["model"]["name"], each["model"]["version"]) for each in bodies}
    shown = ", ".join(f"{name} {number} ({sha256[:12]})" for sha256, name, number in sorted(models))
    if len(models) > 1:
        yield Finding(
            "models",
            "warning",
            f"the workers use {len(models)} models: {shown}",
            "start all with the same COUTURIER_MODEL, unless this is a change of models",
        )
    elif models:
        yield Finding("models", "ok", f"all use {shown}")


def _worker(answer: Answer) -> Finding:
    """Judge one: it lives, it is ready, it is of this version, and its engine stays up."""
    assert answer.listed is not None
    name = f"{answer.listed.worker} at {answer.url}"
    if "state" not in answer.body:
        why = answer.error or f"HTTP {answer.code}"
        return Finding(
            "worker",
            "failed",
            f"{name} does not answer: {why}",
            f"`kill -KILL {answer.listed.pid}`, or its log",
        )
    live, ready = ask(answer.url, "/livez"), ask(answer.url, "/readyz")
    if live.code != 200:
        return Finding(
            "worker",
            "failed",
            f"{name} hangs: {live.text}",
            f"`kill -KILL {answer.listed.pid}`: another worker takes over what it holds",
        )
    body = answer.body
    detail = f"{name}, {body['state']}, couturier {body['version']}, {body['held']:,} held"
    if ready.code != 200:
        return Finding(
            "worker", "warning", f"{name} is not ready: {ready.text}", "`couturier status` says more"
        )
    if body["version"] != version("couturier"):
        return Finding(
            "worker", "warning", f"{detail}; this is {version('couturier')}", "start it again after an update"
        )
    engine: dict[str, Any] = body["engine"]
    if engine["restarts"]:
        return Finding(
            "worker",
            "warning",
            f"{detail}; its engine died {engine['crashes']:,} time(s) and was started again",
            "its log says of what; `couturier dlq list` shows images that crashed it",
        )
    return Finding("worker", "ok", detail)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "no limit of" if soft == resource.RLIM_INFINITY else f"at most {soft:,}"
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        raise_to = _FILES if hard in (resource.RLIM_INFINITY,) or hard >= _FILES else hard
        return Finding(
            "files", "warning", f"{shown} open files, {_FILES:,} are safe", f"`ulimit -n {raise_to}`"
        )
    return Finding("files", "ok", f"{shown} open files")


def _disks(settings: WorkerSettings) -> Iterator[Finding]:
    """Judge where queue, results and state are, each disk once."""
    places = {"state directory": home()}
    for what, url in (("queue", broker_url()), *(("results", each) for each in settings.sink_url.split(","))):
        scheme, _, rest = url.strip().partition(":///")
        if scheme in ("sqlite", "jsonl"):
            places[what] = Path(unquote(rest.partition("?")[0])).parent
    seen: dict[int, list[str]] = {}
    free: dict[int, tuple[Path, int]] = {}
    for what, place in places.items():
        there = next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
        device = there.stat().st_dev
        seen.setdefault(device, []).append(what)
        free[device] = (there, shutil.disk_usage(there).free)
    for device, names in seen.items():
        where, left = free[device]
        detail = f"{left / 1024**3:.1f} GiB free for {', '.join(names)} at {where}"
        if left < _LOW_DISK_BYTES:
            state = "failed" if left < _FULL_DISK_BYTES else "warning"
            yield Finding(
                "disk", state, detail, "free some, or move it: COUTURIER_HOME, BROKER_URL, SINK_URL"
            )
        else:
            yield Finding("disk", "ok", detail)


def _memory(workers: int) -> Finding:
    need = workers * _WORKER_BYTES
    limit = _limit("memory.max", "memory/memory.limit_in_bytes")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    have = min(limit or machine, machine)
    whose = "this container" if have < machine else "this machine"
    detail = f"{have / 1024**3:.1f} GiB in {whose}; {workers} worker(s) take up to {need / 1024**3:.1f} GiB"
    if have < need:
        return Finding("memory", "warning", detail, "give it more, or run fewer workers")
    return Finding("memory", "ok", detail)


def _limit(*names: str) -> int | None:
    """Return the limit of this control group, version 2 or 1; None where there is none."""
    for name in names:
        try:
            return int((_CGROUP / name).read_text())
        except (OSError, ValueError):  # the text is "max"
            continue
    return None


def _cores(workers: int) -> Finding:
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    detail = f"{cores:g} core(s) for {workers} worker(s)"
    if workers > cores:
        return Finding("cores", "warning", detail, "more workers than cores only wait for each other")
    return Finding("cores", "ok", detail)


def _clock() -> Finding:
    """Ask the kernel whether something keeps its clock right; delays and leases go by it."""
    buffer = ctypes.create_string_buffer(1024)  # a struct timex that asks and sets nothing
    try:
        state = ctypes.CDLL(None).adjtimex(buffer)
    except (AttributeError, OSError):
        state = -1
    if state == _TIME_ERROR:
        return Finding(
            "clock",
            "warning",
            "nothing keeps this machine's clock right",
            "`timedatectl status`; `couturier doctor --probe` compares it with the broker's",
        )
    if state < 0:
        return Finding(
            "clock", "skipped", "this system does not say", "`couturier doctor --probe` compares it"
        )
    return Finding("clock", "ok", "kept right by NTP, the kernel says")
