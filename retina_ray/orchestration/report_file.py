"""Where a report goes: into the folder that it is about, local or on S3."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from retina_ray.data.store import Store

REPORT = "report.html"


def place_report(store: Store, write: Callable[[Path], Path]) -> str:
    """Write a report into a folder.

    Args:
        store: of the folder.
        write: writes the report to a local path, and returns that.

    Returns:
        Where it lies: a path or an s3:// address.
    """
    if store.is_local:
        return str(write(store.local_path / REPORT))
    with tempfile.TemporaryDirectory(prefix="retina-ray-report-") as scratch:
        store.upload(write(Path(scratch) / REPORT), REPORT)
    return f"{store.uri}/{REPORT}"
