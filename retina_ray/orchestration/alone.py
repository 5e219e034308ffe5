"""A folder that one process works in at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from retina_ray.data.store import Store, locked
from retina_ray.errors import ConfigError


@contextmanager
def alone(store: Store, what: str) -> Iterator[None]:
    """Keep other processes of this machine out of a folder until the block ends; on S3 nothing is kept out.

    Args:
        store: of the folder.
        what: works there, such as ``search``.

    Raises:
        ConfigError: another process is in a block of the same folder.
    """
    with ExitStack() as held:
        if store.is_local:
            try:
                held.enter_context(locked(store.local_path / ".lock", wait=False))
            except BlockingIOError:
                raise ConfigError(f"the {what} is running", store.uri, "wait for it, or end it") from None
        yield
