"""The published data sets that have an adapter, by the names ``--adapter`` takes. docs/data.md tells what each reads.

A data set is added here, in ``cli.data.Adapter`` and in docs/data.md; a test compares the three.
"""

from collections.abc import Callable
from pathlib import Path

from retina_ray.data.sources.adam import read_adam
from retina_ray.data.sources.aptos import read_aptos
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.ddr import read_ddr
from retina_ray.data.sources.eyepacs import read_eyepacs
from retina_ray.data.sources.idrid import read_idrid
from retina_ray.data.sources.messidor2 import read_messidor2
from retina_ray.data.sources.odir import read_odir
from retina_ray.data.sources.rfmid import read_rfmid

PUBLISHED: dict[str, Callable[[Path], list[SourceRow]]] = {
    "eyepacs": read_eyepacs,
    "aptos": read_aptos,
    "messidor2": read_messidor2,
    "ddr": read_ddr,
    "idrid": read_idrid,
    "odir": read_odir,
    "adam": read_adam,
    "rfmid": read_rfmid,
}
"""Name -> reader of the folder into which the publisher's archives were unpacked."""
