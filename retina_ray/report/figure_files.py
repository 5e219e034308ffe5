"""A drawn figure as the bytes of a file, which the same figure always gives."""

import io
from typing import Literal

import matplotlib as mpl
from matplotlib.figure import Figure

PIXELS_PER_INCH = 160
"""Of PNG files; pages show 100 CSS pixels an inch, so text stays sharp when enlarged."""

Kind = Literal["png", "svg"]


def figure_bytes(figure: Figure, kind: Kind) -> bytes:
    """Return a figure as a file; neither date nor random names go into it."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "retina-ray"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
    return buffer.getvalue()
