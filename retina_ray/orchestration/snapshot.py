"""Ray Train's list of the checkpoints of a training, as a kill may leave it."""

import json
import re
from typing import Any

import ray

from retina_ray.data.store import Store
from retina_ray.training.state import MANIFEST

SNAPSHOT = "checkpoint_manager_snapshot.json"
CHECKPOINT = re.compile(r"checkpoint_\d.*")
"""Ray Train's names begin with the time, so they sort by age."""


def mend(store: Store) -> list[str]:
    """Make the list of checkpoints readable again, and delete the checkpoints that it does not name.

    Ray writes the list in place, so a kill can leave half of it, which Ray would refuse for good; it is then written
    anew from the checkpoints that are there, whose content is verified when one is restored. A kill between the arrival
    of a checkpoint and its entry in the list, or a full disk, strands a checkpoint.

    Args:
        store: the folder of the training.

    Returns:
        The names of the deleted checkpoints.
    """
    folders = sorted(name for name in store.list() if CHECKPOINT.fullmatch(name))
    named = _named(store)
    if named is None:
        named = [name for name in folders if store.child(name).exists(MANIFEST)]
        store.write_bytes(SNAPSHOT, _listing(named).encode())
    strays = [name for name in folders if name not in named]
    for name in strays:
        store.child(name).delete()
    return strays


def _named(store: Store) -> list[str] | None:
    """Return the checkpoints of the list, none where there is no list, or None where it cannot be read."""
    if not store.exists(SNAPSHOT):
        return []
    try:
        state: dict[str, Any] = json.loads(store.read_bytes(SNAPSHOT))
        return [result["checkpoint_dir_name"] for result in state["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return None


def _listing(names: list[str]) -> str:
    """Return a list in the format of the installed Ray, in which the last checkpoint is the newest."""
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in names]
    state = {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1] if results else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(names),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    return json.dumps(state)
