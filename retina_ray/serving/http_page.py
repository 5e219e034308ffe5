"""The web page: one HTML file with its style and its script, which ask nothing of any other server."""

from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def page_routes() -> APIRouter:
    """Return the routes of the page and its assets, which the API's description leaves out."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("retina_ray.serving") / "page"
    for path, (name, media_type) in _FILES.items():
        router.add_api_route(path, _Asset((folder / name).read_bytes(), media_type).get, methods=["GET"], name=name)
    return router


class _Asset:
    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._media_type = media_type

    async def get(self) -> Response:
        return Response(self._content, media_type=self._media_type, headers={"Content-Security-Policy": _POLICY})
