"""Memory that networks free is kept for their next batch, instead of going back to the kernel each time."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h

_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""That glibc takes."""

_KEPT_BYTES = 2**30
_STEP_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have this process keep up to 1 GiB of freed memory, and tell whether its C library can.

    A batch's activations are freed and allocated anew for each batch. glibc gives such large pieces back to the kernel,
    which hands them out again page by page, zeroed: thousands of page faults a batch, a seventh of its time.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD,
        _M_TRIM_THRESHOLD: _KEPT_BYTES,
        _M_TOP_PAD: _STEP_BYTES,
    }
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())
