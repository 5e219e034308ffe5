"""Freed memory that is kept: no page faults from one batch to the next."""

import subprocess
import sys

COUNT = """
import ctypes
import resource
from retina_ray.serving.allocator import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def faults():
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        pieces = []
        for megabytes in (8, 16, 24, 30, 30):  # as a network's layers
            pieces.append(library.malloc(megabytes << 20))
            ctypes.memset(pieces[-1], 1, megabytes << 20)
        for piece in pieces:
            library.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

faults()
before = faults()
kept = keep_freed_memory()
faults()
print(kept, before, faults())
"""


def test_a_batch_finds_the_memory_of_the_one_before() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=60)
    kept, before, after = done.stdout.split()
    assert kept == "True"
    assert int(after) < 10 < int(before)
