"""The dashboard of a Ray cluster, which takes jobs and declarations of what is served: where it is, and its token."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retina_ray.errors import ResourceError

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Of the environment, as Ray names it."""

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Of a cluster's head on this machine, or at this end of a forwarded port."""


def given_address(address: str | None) -> str | None:
    """Return the address that the user named, with an option or in Ray's environment variable."""
    return address or os.environ.get(ADDRESS_VARIABLE) or None


def authenticate() -> None:
    """Have Ray's clients send the token where there is one; left unsaid, they send none and say so only when refused.

    To be called before Ray is imported, which looks once.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Turn what Ray's clients raise when a dashboard cannot be reached into one line.

    Raises:
        ResourceError: in place of their errors.
    """
    from ray.exceptions import RayError  # here: Ray looks for the token when it is imported

    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        fix = "check the address, that Ray runs there, and that RAY_AUTH_MODE and the token are the cluster's"
        reason = " ".join(str(error).split())[:200]
        raise ResourceError(f"cannot reach the dashboard ({reason})", address, fix) from None


def _has_token() -> bool:
    """Tell whether there is a token where Ray looks for one."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or Path("~/.ray/auth_token").expanduser().exists()
