"""Where MLflow keeps its records, and a client for it.

MLflow is imported when it is first needed, since that takes seconds.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retina_ray.config import RunConfig
from retina_ray.data.store import Store
from retina_ray.errors import ResourceError, RetinaRayError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # read on import: nothing is sent to third parties
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(config: RunConfig) -> str:
    """Return where MLflow keeps its records; the folder of a default sqlite file is created.

    The configuration comes first, then MLFLOW_TRACKING_URI, then a file in the storage folder; for storage on S3, which
    cannot hold an sqlite file, one in this machine's state folder.
    """
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    storage = Store(config.runtime.storage)
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    folder = storage.child(".mlflow").local_path if storage.is_local else state / "retina-ray"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def is_server(config: RunConfig) -> bool:
    """Tell whether a tracking server keeps the records; its other users do not see this machine's files."""
    return tracking_uri(config).startswith(("http://", "https://"))


def connect(config: RunConfig) -> "MlflowClient":
    """Return a client that talks to one place about runs and models alike, quietly."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uri = tracking_uri(config)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def explained(config: RunConfig) -> Iterator[None]:
    """Turn MLflow's errors into one that says where the records were to be."""
    try:
        yield
    except RetinaRayError:
        raise
    except Exception as error:
        # By name: neither library is imported here.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy"):
            raise
        what = f"MLflow did not answer as asked ({in_one_line(error)})"
        fix = "check the server and MLFLOW_TRACKING_URI, or set tracking.enabled=false"
        raise ResourceError(what, _without_password(tracking_uri(config)), fix) from None


def in_one_line(error: Exception) -> str:
    """Return an error's beginning, without line breaks and passwords."""
    return _without_password(" ".join(str(error).split()))[:300]


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
