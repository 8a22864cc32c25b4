"""The same cluster with the plain tools, timed: `tofu init`, `plan`, `apply`, `ansible-playbook`.

Promises the very module, variables, backend, encryption, inventory, playbook, Ansible settings and
SSH options of the product, with the same parallelism and forks: they are made by the product's own
code, and then the two programs alone are run. Credentials, the SSH certificate and the pool are
prepared before the clock runs. Secrets are kept in memory, never in an argument.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workspaces import bare_state
from blocks.ansible_run import PlaybookRun, configuration
from blocks.artifact_mirror import ArtifactMirror
from blocks.openbao import OpenBaoServer, OpenBaoSession
from blocks.private_directory import private_directory, write_private
from blocks.proxmox import ProxmoxApi, ProxmoxCluster
from blocks.ssh_command import wait_for_ssh
from blocks.ssh_identity import SshIdentity, make_identity
from blocks.tofu import TofuSession, TofuWorkspace
from deployments.blocks import site_blocks
from deployments.site_file import read_site_file
from domain.errors import LifecycleError, PermanentError
from domain.inventory import ArtifactSource, build_inventory
from domain.machines import machines
from domain.ownership import pool_comment
from domain.specs import ClusterSpec, parse_spec
from lab.layout import ENVIRONMENT, Layout
from lab.services.namespace import inside
from tasks.ansible.tasks import CONFIGURE, FORKS_AT_MOST, HERE, USER
from tasks.proxmox.guests import HOST_KEY_FILE
from tasks.terraform.workspace import MODULE, find_template, parallelism, variables

GUESTS_TIMEOUT_SECONDS = 300.0
STEP_TIMEOUT_SECONDS = 3600.0
CERTIFICATE_SECONDS = 3300
END_SECONDS = 10.0
POLL_SECONDS = 0.25
SHOWN_LINES = 25


class BareFailed(Exception):
    """A plain tool failed; the text holds the end of its output."""


@dataclass
class Stopwatch:
    """Runs commands of one comparison and notes how long each took."""

    directory: Path
    environment: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    def command(self, step: str, argv: Sequence[str], **extra: str) -> None:
        """Run a command to its good end; nothing of it outlives an interruption."""
        output = self.directory.parent / f"{step}.log"
        began = time.monotonic()
        with output.open("wb") as file:
            child = subprocess.Popen(
                argv,
                cwd=self.directory,
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = child.wait(STEP_TIMEOUT_SECONDS)
            except BaseException:
                _end(child)
                raise
        self.seconds[step] = round(time.monotonic() - began, 2)
        if code != 0:
            lines = output.read_text("utf-8", "replace").splitlines()[-SHOWN_LINES:]
            raise BareFailed(f"bare {step} ended with {code}:\n" + "\n".join(lines))

    def call(self, step: str, work: Callable[[], Any]) -> Any:
        """Call `work` and note how long it took."""
        began = time.monotonic()
        found = work()
        self.seconds[step] = round(time.monotonic() - began, 2)
        return found


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(END_SECONDS)


@dataclass(frozen=True)
class BareSite:
    """The site's systems, from its own file."""

    bao: OpenBaoServer
    cluster: ProxmoxCluster
    workspace: TofuWorkspace
    mirror: ArtifactMirror


def bare_site(layout: Layout) -> BareSite:
    """Read the site's file."""
    found: dict[type, Any] = {type(b): b for b in site_blocks(read_site_file(layout.site_file))}
    return BareSite(
        bao=found[OpenBaoServer],
        cluster=found[ProxmoxCluster],
        workspace=found[TofuWorkspace],
        mirror=found[ArtifactMirror],
    )


def run_bare(layout: Layout, data: Mapping[str, Any]) -> dict[str, float]:
    """Build the cluster with the plain tools and remove it; returns the seconds of each step."""
    spec, site = parse_spec(dict(data)), bare_site(layout)
    with (
        inside(layout.namespace_path),
        private_directory("bare") as scratch,
        site.bao.session() as bao,
    ):
        credential = bao.read(site.cluster.credential)
        api = site.cluster.api(credential)
        state_credential = bao.read(site.workspace.credential)
        handed = {
            "BAO_ADDR": bao.address,
            "BAO_TOKEN": bao.token,
            "BAO_CACERT": bao.ca_file,
            "PROXMOX_VE_ENDPOINT": api.endpoint,
            "PROXMOX_VE_API_TOKEN": f"{credential['token_id']}={credential['token_secret']}",
        }
        session = _prepared(spec, site, bao, api, handed, state_credential)
        directory = _copied(site.workspace.directory(bare_state(spec.name)), scratch / "tofu")
        watch = Stopwatch(
            directory,
            {
                **_surroundings(directory),
                **handed,
                **site.workspace.state_backend.environment(state_credential),
            },
        )
        api.create_pool(spec.proxmox.pool, pool_comment(spec.name))
        _tofu(watch, site.workspace.binary, parallelism(spec, api))
        host_keys = watch.call("wait", lambda: _guests_are_up(spec, api))
        _ansible(watch, spec, site, bao, host_keys, scratch)
        destroy = [site.workspace.binary, "destroy", "-auto-approve", "-input=false", "-no-color"]
        watch.command("destroy", destroy)
        session.remove_state(state_credential)
        api.delete_pool(spec.proxmox.pool)
        return watch.seconds


def _prepared(
    spec: ClusterSpec,
    site: BareSite,
    bao: OpenBaoSession,
    api: ProxmoxApi,
    handed: Mapping[str, str],
    state_credential: Mapping[str, str],
) -> TofuSession:
    """Have the product write the module, its variables and the backend, for a state of our own."""
    return site.workspace.session(
        bare_state(spec.name),
        MODULE,
        variables(
            ENVIRONMENT,
            spec,
            find_template(spec, api),
            bao.ssh_ca_public_key(),
            (site.bao.transit_mount, site.bao.state_key),
        ),
        handed,
        state_credential,
        [site.cluster.ca_file, site.workspace.ca_file, site.bao.ca_file],
    )


def _copied(source: Path, target: Path) -> Path:
    """Copy the files and not what was initialised, so that `tofu init` has its work to do."""
    target.mkdir(mode=0o700)
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".tf", ".json", ".rc", ".pem"):
            shutil.copyfile(file, target / file.name)
    return target


def _surroundings(directory: Path) -> dict[str, str]:
    scratch = directory.parent / "t"
    scratch.mkdir(mode=0o700)
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(scratch),
        "TF_CLI_CONFIG_FILE": str(directory / "tofu.rc"),
        "TF_IN_AUTOMATION": "1",
        "CHECKPOINT_DISABLE": "1",
        "SSL_CERT_FILE": str(directory / "ca-bundle.pem"),
    }


def _tofu(watch: Stopwatch, binary: str, parallel: int) -> None:
    plain = ["-input=false", "-no-color"]
    watch.command("init", [binary, "init", *plain])
    watch.command("plan", [binary, "plan", *plain, "-out=bare.tfplan"])
    watch.command("apply", [binary, "apply", *plain, f"-parallelism={parallel}", "bare.tfplan"])


def _guests_are_up(spec: ClusterSpec, api: ProxmoxApi) -> dict[str, str]:
    """Return each guest's host key by address, read through its agent, once all answer by SSH."""
    until = time.monotonic() + GUESTS_TIMEOUT_SECONDS
    keys: dict[str, str] = {}
    for machine in machines(spec):
        while machine.address not in keys:
            try:
                text = api.agent_read_file(machine.vm_id, machine.hypervisor, HOST_KEY_FILE)
            except LifecycleError as error:
                text, cause = "", str(error)
            else:
                cause = "it has no host key"
            if len(text.split()) >= 2:
                keys[machine.address] = " ".join(text.split()[:2])
            elif time.monotonic() > until:
                raise PermanentError(f"Unable to reach {machine.name}: {cause}. See its console.")
            else:
                time.sleep(POLL_SECONDS)
    wait_for_ssh(keys, GUESTS_TIMEOUT_SECONDS)
    return keys


def _ansible(
    watch: Stopwatch,
    spec: ClusterSpec,
    site: BareSite,
    bao: OpenBaoSession,
    host_keys: Mapping[str, str],
    scratch: Path,
) -> None:
    directory = scratch / "ansible"
    for folder in (directory, directory / "tmp", directory / "c"):
        folder.mkdir(mode=0o700)

    def sign(public_key: str) -> str:
        return bao.sign_ssh_key(site.bao.ssh_role, public_key, [USER], CERTIFICATE_SECONDS)

    run = _playbook_run(spec, site, make_identity(directory, sign, host_keys), directory)
    write_private(directory / "ansible.cfg", configuration(run))
    inventory = yaml.safe_dump(dict(run.inventory), sort_keys=False)
    write_private(directory / "inventory.yaml", inventory)
    write_private(directory / "variables.json", json.dumps(dict(run.secret_variables)))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    inputs = ["-i", str(directory / "inventory.yaml"), "-e", f"@{directory / 'variables.json'}"]
    ansible = Stopwatch(directory, _ansible_environment(directory), watch.seconds)
    ansible.command("configure", [program, str(run.playbook), *inputs])


def _ansible_environment(directory: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ANSIBLE_HOME": str(directory / "tmp"),
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
    }


def _playbook_run(
    spec: ClusterSpec, site: BareSite, identity: SshIdentity, directory: Path
) -> PlaybookRun:
    found = machines(spec)
    mirror = ArtifactSource(url=site.mirror.url, ca_certificate=site.mirror.ca_text())
    addresses = {machine.name: machine.address for machine in found}
    return PlaybookRun(
        playbook=CONFIGURE,
        inventory=build_inventory(spec, found, addresses, mirror),
        directory=directory,
        roles=HERE / "roles",
        library=HERE / "library",
        module_utils=HERE / "module_utils",
        secret_variables={
            "server_token": secrets.token_hex(32),
            "agent_token": secrets.token_hex(32),
            "vrrp_password": secrets.token_hex(4),
        },
        ssh_options=identity.options(),
        user=USER,
        forks=min(len(found), FORKS_AT_MOST),
    )
