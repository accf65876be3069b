"""Memory that a process has freed, and wants again."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
from steersman.generation.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{call}
for _ in range(3):
    before = faults()
    block = b"x" * (64 << 20)
    del block
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_what_is_freed_is_taken_again_as_it_is():
    again, kept = (
        int(subprocess.run([sys.executable, "-c", SCRIPT.format(call=call)], capture_output=True, check=True).stdout)
        for call in ("", "keep_freed_memory()")
    )
    assert again > 16  # a block's 16,384 pages, or 32 huge ones, made anew each time
    assert kept < min(100, again / 10)
