"""Facts of the site that belong to no single system: programs, addresses, the artefact mirror."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

from prefect import task

from blocks.artifact_mirror import ArtifactMirror
from blocks.documents import document
from blocks.tofu import TofuWorkspace
from domain.errors import LifecycleError, Unreachable
from domain.inventory import ArtifactSource
from domain.machines import machines
from domain.preflight import AddressFacts, ArtifactFacts, ToolFacts
from domain.specs import ClusterSpec
from tasks.retry_rules import TEMPORARY

VERSION_TIMEOUT_SECONDS = 20
PING_TIMEOUT_SECONDS = 1


def _mirror(environment: str) -> ArtifactMirror:
    return document(ArtifactMirror, environment)


def artifact_source(environment: str) -> ArtifactSource:
    """Return where machines fetch RKE2, with the CA to verify it by."""
    mirror = _mirror(environment)
    return ArtifactSource(url=mirror.url, ca_certificate=mirror.ca_text())


def _first_line(argv: list[str]) -> str | None:
    """Return the first line that a program prints of its version; None if it is absent."""
    program = shutil.which(argv[0])
    if program is None:
        return None
    done = subprocess.run(
        [program, *argv[1:]],
        capture_output=True,
        text=True,
        timeout=VERSION_TIMEOUT_SECONDS,
        check=False,
    )
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else None


@task(name="gather tool facts", **TEMPORARY)
def gather_tool_facts(environment: str) -> ToolFacts:
    """Return the versions of the programs that a run starts."""
    tofu = document(TofuWorkspace, environment)
    return ToolFacts(
        versions={
            "tofu": _first_line([tofu.binary, "version"]),
            "proxmox provider": tofu.provider_version(),
            "ansible": _first_line(["ansible-playbook", "--version"]),
            "ssh": _first_line(["ssh", "-V"]),
        }
    )


@task(name="gather artefact facts", tags=["system:artifacts"], **TEMPORARY)
def gather_artifact_facts(environment: str, spec: ClusterSpec) -> ArtifactFacts:
    """Look whether the mirror serves the wanted version."""
    try:
        missing = _mirror(environment).missing_files(spec.kubernetes.version)
    except Unreachable as error:
        return ArtifactFacts(is_reachable=False, problem=str(error))
    except LifecycleError as error:
        return ArtifactFacts(is_reachable=True, problem=str(error))
    return ArtifactFacts(is_reachable=True, has_version=not missing)


def _answers(address: str) -> bool:
    ping = ["ping", "-c", "1", "-W", str(PING_TIMEOUT_SECONDS), "-q", address]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


@task(name="gather address facts", tags=["system:network"], **TEMPORARY)
def gather_address_facts(spec: ClusterSpec) -> AddressFacts | None:
    """Ask each of the cluster's addresses for an echo, all at once; None where ping is absent."""
    if shutil.which("ping") is None:
        return None
    wanted = [machine.address for machine in machines(spec)] + [spec.control_plane.virtual_ip]
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(_answers, wanted))
    return AddressFacts(
        answering=frozenset(a for a, is_there in zip(wanted, answers, strict=True) if is_there)
    )
