"""The artefact mirror: where machines without internet fetch RKE2 from.

Promises to tell whether a version is complete before any machine is made for it. Layout, as the
RKE2 air-gap installation has it: `<url>/<version>/rke2.linux-amd64.tar.gz` beside
`sha256sum-amd64.txt` (https://docs.rke2.io/install/airgap).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import quote

import httpx
from prefect.blocks.core import Block
from pydantic import Field

from domain.errors import PermanentError, Unreachable

TARBALL = "rke2.linux-amd64.tar.gz"
CHECKSUMS = "sha256sum-amd64.txt"
TIMEOUT_SECONDS = 10


class ArtifactMirror(Block):
    """A web server with RKE2's release artefacts by version."""

    _block_type_name = "RKE2 artefact mirror"
    _block_type_slug = "infraflows-artifact-mirror"
    _description = "Web server inside the site that holds RKE2's releases by version."

    url: str = Field(description="Base URL, as https://mirror.example.org/rke2.")
    ca_file: str = Field(default="", description="File of the CA; the system's if empty.")

    def ca_text(self) -> str:
        """Return the CA's certificates in PEM, for machines to verify the mirror with.

        Raises:
            PermanentError: the file cannot be read.
        """
        if not self.ca_file:
            return ""
        try:
            return Path(self.ca_file).read_text(encoding="utf-8")
        except OSError as error:
            raise PermanentError(
                f"Unable to read the mirror's CA {self.ca_file}: {error.strerror}. "
                "Put the CA's certificate there."
            ) from error

    def missing_files(self, version: str) -> list[str]:
        """Return which of a version's files the mirror lacks.

        Raises:
            Unreachable: the mirror does not answer.
        """
        verify: ssl.SSLContext | bool = True
        if self.ca_file:
            verify = ssl.create_default_context(cafile=self.ca_file)
        base = f"{self.url.rstrip('/')}/{quote(version, safe='')}"
        try:
            with httpx.Client(verify=verify, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
                answers = {
                    name: client.head(f"{base}/{name}").status_code for name in (TARBALL, CHECKSUMS)
                }
        except httpx.HTTPError as error:
            raise Unreachable(
                f"Unable to look up {version} at {self.url}: no answer ({type(error).__name__}). "
                "Check the mirror's address and CA."
            ) from error
        busy = {name: code for name, code in answers.items() if code >= 500}
        if busy:
            raise Unreachable(
                f"Unable to look up {version} at {self.url}: the mirror answered {busy}. "
                "Look at the mirror's log."
            )
        return [name for name, code in answers.items() if code >= 300]
