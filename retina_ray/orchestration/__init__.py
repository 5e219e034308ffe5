"""Runs on Ray; the only package of retina_ray that imports it."""

import os

# Explicit, and before Ray is imported, which is when it is read: what an unset mode means differs between Ray's entry
# points.
os.environ.setdefault("RAY_AUTH_MODE", "token")
