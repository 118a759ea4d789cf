"""Several processes training one network: each takes its share of every batch.

Gradients and batch statistics are averaged in one message a step, so that all processes hold
the same weights at any time. ``torchrun`` starts the processes and sets the environment
(https://docs.pytorch.org/docs/stable/elastic/run.html); without it there is one, and nothing here
costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all: ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def average(self, network: nn.Module) -> None:
        """Make gradients and floating-point buffers the mean over all processes, in place."""
        if self.world == 1:
            return
        values = [p.grad for p in network.parameters() if p.grad is not None]
        values += [b for b in network.buffers() if b.is_floating_point()]
        flat = torch.cat([value.flatten() for value in values])
        dist.all_reduce(flat)
        flat /= self.world
        parts = torch.split(flat, [value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view(value.shape))

    def total(self, counts: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            dist.all_reduce(counts)
        return counts

    def agreed(self, value: float, device: torch.device) -> float:
        """The first process's value, for what each would measure differently, such as time."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return float(shared)

    @contextmanager
    def first_leads(self) -> Iterator[None]:
        """The first process runs the block before the others do, so that it fills caches alone."""
        if self.world > 1 and not self.leads:
            dist.barrier()
        yield
        if self.world > 1 and self.leads:
            dist.barrier()


def ranks() -> Ranks:
    """This process's place; one of one outside :func:`process_group`."""
    joined = dist.is_available() and dist.is_initialized()
    return Ranks(dist.get_rank(), dist.get_world_size()) if joined else Ranks()


def device_named(name: str) -> torch.device:
    """The torch device ``name``, where "auto" is this process's GPU if there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: not usable here ({reason}); take cpu or auto") from error


@contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, and leave at the end; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    chosen = device_named(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield ranks()
    finally:
        dist.destroy_process_group()
