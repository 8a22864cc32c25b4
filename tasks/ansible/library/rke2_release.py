#!/usr/bin/python3
"""Installs one RKE2 release from its archive, verified, and replaces an older one file by file.

Promises that only an archive whose SHA-256 stands in the release's own list is unpacked, that a
kill at any point leaves either the old file or the new one in every place, and that a running
service of the older release is noted for a restart. Refuses archives that would write elsewhere.
"""

from __future__ import annotations

import hashlib
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]
from ansible.module_utils.host_lock import exclusive  # type: ignore[import-untyped]
from ansible.module_utils.pending_actions import owe  # type: ignore[import-untyped]

DOCUMENTATION = r"""
module: rke2_release
short_description: Installs a verified RKE2 release
options:
  url: {description: Address of the releases, type: str, required: true}
  version: {description: Release, type: str, required: true}
  prefix: {description: Where it is unpacked, type: path}
  ca_certificate: {description: PEM text of the mirror's CA, type: str}
  restart_action: {description: What is owed when a release is replaced, type: str}
"""

ARCHIVE = "rke2.linux-amd64.tar.gz"
CHECKSUMS = "sha256sum-amd64.txt"
STATE = Path("/var/lib/infraflows/rke2-release")
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60
ATTEMPTS = 4


class Failed(Exception):
    """The release cannot be installed; says why and what to do."""


def opened(url: str, ca_certificate: str) -> Any:
    """Open a URL of the mirror."""
    context = ssl.create_default_context(cadata=ca_certificate or None)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS, context=context)  # noqa: S310 - the scheme is checked in main
        except OSError as error:
            is_refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if attempt == ATTEMPTS or is_refused:
                raise Failed(f"Unable to fetch {url}: {error}. Check the mirror.") from error
            time.sleep(2 * attempt)
    raise AssertionError("the last attempt returns or raises")


def wanted_checksum(base: str, ca_certificate: str) -> str:
    """Return the SHA-256 that the release's list gives for its archive."""
    with opened(f"{base}/{CHECKSUMS}", ca_certificate) as reply:
        for line in reply.read(CHUNK_BYTES).decode().splitlines():
            checksum, _, name = line.partition(" ")
            if name.strip().lstrip("*") == ARCHIVE and len(checksum) == 64:
                return str(checksum.lower())
    raise Failed(f"Unable to verify {base}/{ARCHIVE}: {CHECKSUMS} does not list it.")


def fetch(base: str, ca_certificate: str, target: Path) -> str:
    """Store the archive in `target` if its checksum is right; return the checksum."""
    wanted = wanted_checksum(base, ca_certificate)
    digest = hashlib.sha256()
    with opened(f"{base}/{ARCHIVE}", ca_certificate) as reply, target.open("wb") as file:
        while chunk := reply.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != wanted:
        target.unlink()
        raise Failed(
            f"Unable to install {base}/{ARCHIVE}: its SHA-256 is {digest.hexdigest()}, and "
            f"{CHECKSUMS} says {wanted}. Repair the mirror."
        )
    return wanted


def unpack(archive: Path, staging: Path) -> list[Path]:
    """Unpack below `staging` in one pass and return the relative paths of the files."""
    files: list[Path] = []
    with tarfile.open(archive, "r|gz", bufsize=CHUNK_BYTES) as tar:
        for member in tar:
            name = Path(member.name)
            if member.isdir():
                continue
            if name.is_absolute() or ".." in name.parts or not member.isfile():
                raise Failed(f"Unable to unpack {archive.name}: {name} is not a plain file.")
            source, target = tar.extractfile(member), staging / name
            if source is None:
                raise Failed(f"Unable to unpack {archive.name}: {name} has no content.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
            target.chmod(member.mode & 0o755)
            files.append(name)
    return files


def install(module: AnsibleModule) -> None:
    """Fetch, verify, unpack beside the target, then move file by file."""
    params = module.params
    prefix, had_release = Path(params["prefix"]), STATE.exists()
    staging = prefix / ".infraflows-rke2-new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True, mode=0o700)
    base = f"{params['url']}/{params['version']}"
    try:
        archive = staging / ARCHIVE
        checksum = fetch(base, params["ca_certificate"], archive)
        files = unpack(archive, staging / "root")
        if had_release or (prefix / "bin" / "rke2").exists():
            owe(params["restart_action"])
        for file in files:
            (prefix / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / "root" / file).replace(prefix / file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    STATE.parent.mkdir(parents=True, exist_ok=True)
    temporary = STATE.with_suffix(".new")
    temporary.write_text(f"{params['version']} {checksum}\n")
    temporary.replace(STATE)


def is_installed(module: AnsibleModule) -> bool:
    """Return whether the wanted release was installed to its end."""
    binary = Path(module.params["prefix"]) / "bin" / "rke2"
    if not binary.exists() or not STATE.exists():
        return False
    return bool(STATE.read_text().split(" ")[0] == module.params["version"])


def main() -> None:
    """Entry point that Ansible calls on the host."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "prefix": {"type": "path", "default": "/usr/local"},
            "ca_certificate": {"type": "str", "default": ""},
            "restart_action": {"type": "str", "default": "restart-rke2"},
        },
        supports_check_mode=True,
    )
    if not module.params["url"].startswith("https://"):
        module.fail_json(msg="Unable to install RKE2: rke2_artifact_url is not an https address.")
    is_changed = not is_installed(module)
    if is_changed and not module.check_mode:
        try:
            with exclusive():
                # What a killed run began may have come to its end while this one waited.
                if not is_installed(module):
                    install(module)
        except (Failed, OSError, tarfile.TarError) as error:
            module.fail_json(msg=str(error))
    module.exit_json(changed=is_changed, version=module.params["version"])


if __name__ == "__main__":
    main()
