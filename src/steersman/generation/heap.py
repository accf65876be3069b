"""The process's heap, on Linux."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 30
"""Bytes: larger blocks, and what lies free at the heap's end beyond as much, go back to the system."""


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, for good.

    A step of an engine needs anew what the last one freed, logits and activations of tens of megabytes. By default
    glibc gives blocks of that size back to the system, which then has to make and clear every page of the next one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # glibc's; others have none
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)
