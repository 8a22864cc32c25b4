"""The NGINX on a host outside the clusters, reached by SSH with a certificate that OpenBao signs.

Why it exists: some names are answered by a server that no cluster runs. Promises that files which
belong together are switched by one link, that NGINX has looked at them (`nginx -t`) before it reads
them anew, that a version which it refuses is taken back, and that a reload which a kill prevented
is seen to be missing. Keys go through standard input and lie on the host with mode 0600.
Refuses a host whose key OpenBao does not know.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import shlex
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from blocks.openbao import OpenBaoSession
from blocks.private_directory import private_directory
from blocks.rotation.hosts import DEFAULT_USER, Host, ssh_host
from blocks.ssh_identity import SshIdentity, make_identity
from domain.errors import NotFound
from domain.onboarding.outside_site import CERTIFICATE, CURRENT, KEY, SITE, OutsidePlaces

RELOADED = "reloaded"
"""File beside a stage's versions: the version that NGINX was told to read last."""
PRIVATE_MODE = 0o600
CERTIFICATE_SECONDS = 900
"""Of the SSH certificate: one call of a step takes seconds."""

_FILES = (SITE, CERTIFICATE, KEY)
_LIST = """\
cd -- "$1" 2>/dev/null || exit 0
for stage in *; do
    test -d "$stage" || continue
    now=$(readlink -- "$stage/$2" || echo -)
    told=$(cat -- "$stage/$3" 2>/dev/null || echo -)
    echo "stage $stage $now $told"
    for version in "$stage"/*/; do
        version=$(basename -- "$version")
        test "$version" = "$2" && continue
        test -d "$stage/$version" || continue
        line="version $stage $version"
        for file in "$4" "$5" "$6"; do
            path="$stage/$version/$file"
            if test -f "$path"; then
                line="$line $(stat -c %a -- "$path"):$(base64 -w0 -- "$path")"
            else
                line="$line -:"
            fi
        done
        echo "$line"
    done
done
"""
_SERVE = """\
set -eu
umask 077
directory=$1 version=$2 current=$3 told=$4 check=$5 reload=$6 include=$7 text=$8
point() { ln -sfn -- "$1" "$directory/$current.next"; mv -fT -- "$directory/$current.next" \
    "$directory/$current"; }
mkdir -p -- "$directory/$version"
tar -x --no-same-owner -C "$directory/$version" -f -
sync -- "$directory/$version"/*
if test "$(cat -- "$include" 2>/dev/null || true)" != "$text"; then
    printf '%s\\n' "$text" >"$include.next"
    chmod 644 "$include.next"
    mv -fT -- "$include.next" "$include"
fi
before=$(readlink -- "$directory/$current" || true)
point "$version"
if ! $check; then
    if test -z "$before"; then
        rm -f -- "$directory/$current"
    else
        point "$before"
    fi
    exit 1
fi
$reload
printf '%s' "$version" >"$directory/$told.next"
mv -fT -- "$directory/$told.next" "$directory/$told"
for other in "$directory"/*/; do
    other=$(basename -- "$other")
    case $other in "$version" | "$current") ;; *) rm -rf -- "$directory/$other" ;; esac
done
"""
_WITHDRAW = """\
set -eu
directory=$1 current=$2 check=$3 reload=$4
shift 4
for stage in "$@"; do rm -f -- "$directory/$stage/$current"; done
$check
$reload
"""
_FORGET = """\
set -eu
directory=$1
shift
for stage in "$@"; do rm -rf -- "$directory/$stage"; done
# Another stage may be there, or the directory be gone: both are fine.
rmdir -- "$directory" 2>/dev/null || true
"""
_SERVER_NAME = re.compile(r"(?:^|[;{}\s])server_name\s+([^;]+);")
_FILE_LINE = re.compile(r"^# configuration file (.+):$")


@dataclass(frozen=True)
class SiteVersion:
    """One version of a stage's files, as it lies on the host."""

    name: str
    text: str
    chain: bytes
    key: bytes = field(repr=False)
    is_key_private: bool


@dataclass(frozen=True)
class OutsideStage:
    """What lies on the host of one stage."""

    name: str
    current: str
    """Version that the link leads to; empty without a link."""
    reloaded: str
    """Version that NGINX was told to read last."""
    versions: Mapping[str, SiteVersion]


class OutsideNginx:
    """One host's NGINX."""

    def __init__(self, host: Host, places: OutsidePlaces) -> None:
        """Take the host and where things lie on it."""
        self.host = host
        self.places = places

    def stages(self, application: str) -> dict[str, OutsideStage]:
        """Return what lies there of an application, by stage."""
        directory = self.places.application(application)
        listed = self._script(_LIST, directory, CURRENT, RELOADED, *_FILES)
        lines = listed.decode().splitlines()
        stages: dict[str, tuple[str, str, dict[str, SiteVersion]]] = {}
        for line in lines:
            kind, stage, *rest = line.split(" ")
            if kind == "stage":
                current, reloaded = ("" if each == "-" else each for each in rest)
                stages[stage] = (current, reloaded, {})
            else:
                version = _version(*rest)
                stages[stage][2][version.name] = version
        return {name: OutsideStage(name, *parts) for name, parts in stages.items()}

    def names_elsewhere(self, application: str, names: Iterable[str]) -> list[str]:
        """Return those of the names that other server blocks of the host answer already."""
        own = self.places.application(application) + "/"
        taken: set[str] = set()
        is_own = False
        for line in self.host.run(shlex.split(self.places.show)).decode().splitlines():
            if found := _FILE_LINE.match(line):
                is_own = found[1].startswith(own)
            elif not is_own and not line.lstrip().startswith("#"):
                for each in _SERVER_NAME.finditer(line):
                    taken |= set(each[1].split())
        return sorted(taken & set(names))

    def serve(self, application: str, stage: str, version: str, files: Mapping[str, str]) -> None:
        """Write a version, have NGINX look at it and read it, and remove the others.

        Raises:
            PermanentError: NGINX refuses it; what was served before is served on.
        """
        places = self.places
        directory = places.stage(application, stage)
        arguments = [directory, version, CURRENT, RELOADED, places.check, places.reload]
        include = [places.include_file, places.include_text.rstrip("\n")]
        self._script(_SERVE, *arguments, *include, content=_archive(files))

    def withdraw(self, application: str, stages: Iterable[str]) -> None:
        """Have NGINX forget stages; their files stay until `forget`, so that a kill is seen."""
        places = self.places
        directory = places.application(application)
        self._script(_WITHDRAW, directory, CURRENT, places.check, places.reload, *stages)

    def forget(self, application: str, stages: Iterable[str]) -> None:
        """Remove the files of stages, and the application's directory when it is empty."""
        self._script(_FORGET, self.places.application(application), *stages)

    def _script(self, script: str, *arguments: str, content: bytes = b"") -> bytes:
        """Run a script as one command: each command is a connection."""
        return self.host.run(["sh", "-c", script, "sh", *arguments], content)


def _archive(files: Mapping[str, str]) -> bytes:
    """Return the files as an archive; each is for its owner alone."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = PRIVATE_MODE
            entry.size = len(content.encode())
            archive.addfile(entry, io.BytesIO(content.encode()))
    return written.getvalue()


def _version(name: str, *parts: str) -> SiteVersion:
    contents, modes = [], []
    for part in parts:
        mode, _, text = part.partition(":")
        modes.append(mode)
        try:
            contents.append(base64.b64decode(text, validate=True))
        except binascii.Error:
            contents.append(b"")
    site, chain, key = contents
    return SiteVersion(
        name,
        site.decode(errors="replace"),
        chain,
        key,
        is_key_private=modes[2] == f"{PRIVATE_MODE:o}",
    )


@contextmanager
def outside_host(bao: OpenBaoSession, environment: str, address: str) -> Iterator[Host]:
    """Reach the host at `address`; its public host key lies in OpenBao beside those of others."""
    path = f"infraflows/{environment}/outside-hosts"
    keys = bao.read(path)
    if address not in keys:
        raise NotFound(
            f"Unable to reach {address}: {path} has no host key of it. Write its public host key "
            "there, under its address."
        )
    with private_directory("onboard") as directory:
        made: list[SshIdentity] = []

        def sign(public_key: str) -> str:
            role = bao.server.ssh_role
            return bao.sign_ssh_key(role, public_key, [DEFAULT_USER], CERTIFICATE_SECONDS)

        def identity(*, is_fresh: bool) -> SshIdentity:
            if not made:
                made.append(make_identity(directory, sign, {address: keys[address]}, "onboarding"))
            del is_fresh  # one call's work is shorter than any certificate's life
            return made[0]

        yield ssh_host(address, DEFAULT_USER, identity)
