"""The processes of a run: those that `torchrun` started, or this one alone."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Mesh:
    """This process's place in the run.

    Attributes:
        rank: from 0; rank 0 writes what the run writes.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device


def join() -> Mesh:
    """Join the run described by torchrun's environment variables; safe to call again."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), "nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    if size > 1 and not dist.is_initialized():
        dist.init_process_group(backend)
    return Mesh(rank, size, device)


def leave() -> None:
    """Close the connections to the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
