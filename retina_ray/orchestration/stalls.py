"""What ranks that got nowhere said of themselves before they ended."""

from collections.abc import Callable
from typing import Any

from retina_ray.data.store import Store
from retina_ray.errors import StalledError
from retina_ray.orchestration.progress import Listener

Record = dict[str, Any]


class Stalls:
    """Passes records on to a listener, and keeps the stacks of those of kind ``stalled`` beside their stage's artifact.

    Args:
        listener: receives all records.
        store_of: returns where a stage's artifact lies, by the stage's name.
    """

    def __init__(self, listener: Listener, store_of: Callable[[str], Store]) -> None:
        self._listener = listener
        self._store_of = store_of
        self._files = 0
        self._heard: dict[str, list[Record]] = {}

    def __call__(self, record: Record) -> None:
        """Take a record."""
        if record["kind"] in ("restored", "step", "epoch"):  # started again, and what they end of now is something else
            self._heard.pop(record["stage"], None)
        if record["kind"] == "stalled":
            heard = self._heard.setdefault(record["stage"], [])
            store, name = self._store_of(record["stage"]), f"stacks-{self._files}-rank-{record['rank']}.txt"
            self._files += 1
            store.write_bytes(name, record["stacks"].encode())
            record = {**{key: value for key, value in record.items() if key != "stacks"}, "file": f"{store.uri}/{name}"}
            heard.append(record)
        self._listener(record)

    def error(self, stage: str) -> StalledError | None:
        """Return what ended a stage if that was a rank that got nowhere."""
        heard = self._heard.get(stage)
        if not heard:
            return None
        ranks = sorted({record["rank"] for record in heard})
        return StalledError(ranks, heard[-1]["seconds"], heard[-1]["file"].rpartition("/")[0])
