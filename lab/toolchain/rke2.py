"""Packs the lab's RKE2 distribution as the artefact mirror serves it.

Why: the Ansible role installs RKE2 from an air-gapped mirror; the lab's mirror holds a tarball of
the same layout. Promises: the archive is named by its inputs and reproducible; a new one replaces
the old one together with its checksum. `lab/rke2/PACKAGING.md` is the layout's contract.
"""

import gzip
import hashlib
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from lab.toolchain.content import content_hash, exclusive, file_parts, link, staged
from lab.toolchain.gobuild import Say, go_build, go_version
from lab.toolchain.paths import RKE2_VERSION, cache_dir, rke2_artifacts, tool

SOURCE_DIR = Path(__file__).parents[1] / "rke2"
ARCHIVE = "rke2.linux-amd64.tar.gz"
CHECKSUMS = "sha256sum-amd64.txt"
PARTS = (
    "etcd",
    "etcdctl",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kwok",
)
_VERSION_FLAG = f"-X infraflows/lab/rke2/internal/version.Version={RKE2_VERSION}"
_CHUNK = 1 << 20
_KEPT_BUILDS = 3


def _sources() -> list[Path]:
    wanted = [*SOURCE_DIR.rglob("*.go"), SOURCE_DIR / "go.mod", SOURCE_DIR / "go.sum"]
    wanted += SOURCE_DIR.rglob("*.yaml")  # embedded by the Go sources
    wanted += [*SOURCE_DIR.glob("systemd/*"), *SOURCE_DIR.glob("scripts/*")]
    return [path for path in wanted if path.is_file() and not path.name.endswith("_test.go")]


def distribution_hash(version: str) -> str:
    """Names the tarball by our sources, the Go version and the builds that it carries."""
    carried = [f"{part}={_identity(tool(part))}" for part in PARTS]
    own = Path(__file__).read_bytes()
    return content_hash((version, own, *carried, *file_parts(SOURCE_DIR, _sources())))


def _identity(program: Path) -> str:
    """Where a build really lies says what it is; a wheel's program is known by size and time."""
    real = program.resolve()
    if real.is_relative_to(cache_dir()):
        return real.relative_to(cache_dir()).as_posix()
    return str(real.stat().st_size)


def build_rke2(say: Say) -> Path:
    """The folder `<cache>/rke2/<version>`, packed now if its inputs changed."""
    digest = distribution_hash(go_version(SOURCE_DIR))
    folder = cache_dir() / "builds" / f"rke2-{digest}"
    with exclusive("rke2"):
        if not (folder / CHECKSUMS).exists():
            started = time.monotonic()
            say("rke2: building and packing the distribution")
            with staged(folder) as stage:
                go_build(SOURCE_DIR, stage / "rke2", ["./cmd/rke2"], _VERSION_FLAG, "rke2")
                _pack(stage)
            say(f"rke2: built in {time.monotonic() - started:.0f} s")
        link(rke2_artifacts() / RKE2_VERSION, folder)
        _forget_old(folder)
    return folder


def _forget_old(current: Path) -> None:
    """150 MB for every change of the sources add up: the last few are enough."""
    builds = sorted(current.parent.glob("rke2-*"), key=lambda path: path.stat().st_mtime)
    for old in builds[:-_KEPT_BUILDS]:
        if old != current:
            shutil.rmtree(old, ignore_errors=True)


def _members(stage: Path) -> Iterator[tuple[str, Path, int]]:
    yield "bin/rke2", stage / "rke2", 0o755
    for script in sorted(SOURCE_DIR.glob("scripts/*")):
        yield f"bin/{script.name}", script, 0o755
    for unit in sorted(SOURCE_DIR.glob("systemd/*")):
        yield f"lib/systemd/system/{unit.name}", unit, 0o644
    for part in PARTS:
        yield f"libexec/rke2/{part}", tool(part).resolve(), 0o755


def _pack(stage: Path) -> None:
    archive = stage / ARCHIVE
    # Level 1: five guests unpack it at once, time matters more than size.
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name, source, mode in _members(stage):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = source.stat().st_size, mode
            with source.open("rb") as content:
                tar.addfile(entry, content)
    (stage / "rke2").unlink()  # the folder is served: the two files of the mirror and no more
    digest = hashlib.sha256()
    with archive.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    (stage / CHECKSUMS).write_text(f"{digest.hexdigest()}  {ARCHIVE}\n")
