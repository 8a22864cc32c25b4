"""The artefact mirror: files by version, read only, with ranges, as an air-gapped site does it."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response


def artifact(request: Request, directory: Path) -> Response:
    """A file, or for a folder the names in it."""
    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse(
            f"Not simulated by the artefact mirror: {request.method}\n", status_code=501
        )
    wanted = request.path_params["path"]
    # Links inside the mirror may lead to the build cache; only the asked-for name is confined.
    if any(part in ("..", "") for part in Path(wanted).parts) or wanted.startswith("/"):
        return PlainTextResponse("Not found\n", status_code=404)
    path = directory / wanted
    if path.is_dir():
        return JSONResponse(sorted(entry.name for entry in path.iterdir()))
    if not path.is_file():
        return PlainTextResponse(f"Not found: {wanted}\n", status_code=404)
    return FileResponse(path, media_type="application/octet-stream")
