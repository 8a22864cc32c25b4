"""The artefact mirror serves files and ranges of them, and nothing outside its directory."""

from __future__ import annotations

from typing import Any

import httpx
import pytest


@pytest.fixture
def mirror(site: Any) -> Any:
    (site.directory / "rke2/v1/rke2.tar.gz").write_bytes(bytes(range(256)) * 64)
    (site.directory / "secret").write_text("outside")
    with httpx.Client(base_url=f"{site.url}/rke2", trust_env=False) as client:
        yield client


def test_a_file_is_served_whole(mirror: httpx.Client) -> None:
    assert mirror.get("/v1/rke2.tar.gz").content == bytes(range(256)) * 64


def test_an_interrupted_download_can_go_on(mirror: httpx.Client) -> None:
    reply = mirror.get("/v1/rke2.tar.gz", headers={"Range": "bytes=16380-"})
    assert reply.status_code == 206
    assert reply.content == bytes([252, 253, 254, 255])
    assert reply.headers["content-range"] == "bytes 16380-16383/16384"


def test_a_folder_lists_its_names(mirror: httpx.Client) -> None:
    assert mirror.get("/v1").json() == ["rke2.tar.gz"]


@pytest.mark.parametrize("path", ["/v2/rke2.tar.gz", "/%2e%2e/secret", "/v1/..%2f..%2fsecret"])
def test_what_is_not_there_or_outside_is_not_found(mirror: httpx.Client, path: str) -> None:
    assert mirror.get(path).status_code in (404, 501)
    assert "outside" not in mirror.get(path).text


def test_nothing_can_be_written(mirror: httpx.Client) -> None:
    assert mirror.put("/v1/rke2.tar.gz", content=b"x").status_code == 501
