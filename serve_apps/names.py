"""What the application and its deployments are called, for those who build it and those who change it."""

APP = "retina_ray"
IMPORT_PATH = "serve_apps.app:build"

HTTP = "Http"
"""The deployment that takes requests."""


def model_deployment(served_as: str) -> str:
    """Return the name of a served model's deployment."""
    return f"Model-{served_as}"


def candidate_deployment(served_as: str) -> str:
    """Return the name of the deployment of a candidate for a served model's place."""
    return f"Candidate-{served_as}"
