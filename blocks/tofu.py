"""OpenTofu: plans and applies what a cluster is made of.

Promises that a plan which was shown is applied as it is or not at all, that states and plans are
encrypted before they leave the process, and that a run which was cut short leaves a lock that the
next one may break. Refuses to break a lock that a living run may hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from prefect.logging import get_logger
from pydantic import Field
from python_terraform import IsFlagged

from blocks.documents import document
from blocks.private_directory import base_directory
from blocks.state_backend import Kind, Locking, StateBackend
from blocks.tofu_lock import lock_info
from blocks.tofu_process import Outcome, TofuProcess, failure
from domain.adoption import StateEntry
from domain.errors import Conflict, PermanentError

FOREIGN_LOCK_SECONDS = 900.0
"""A lock that another host left is taken for dead after this time."""
REFRESH_PARALLELISM = 10
UNSAVED_STATE = "errored.tfstate"
"""Written, encrypted, by an apply that could not reach its backend."""
MACHINE_TYPE = "proxmox_virtual_environment_vm"

logger = get_logger(__name__)


@dataclass(frozen=True)
class Progress:
    """One event of an apply."""

    address: str
    action: str
    stage: str
    """`start`, `progress`, `complete` or `errored`."""
    seconds: float


OnProgress = Callable[[Progress], None]


def machine_address(name: str) -> str:
    """Return the address of a machine in the module."""
    return f'{MACHINE_TYPE}.machine["{name}"]'


class TofuSession:
    """OpenTofu in one cluster's directory, with the credentials of one act."""

    def __init__(self, process: TofuProcess, directory: Path, backend: StateBackend, name: str):
        """Take the prepared process."""
        self._tofu = process
        self._directory = directory
        self._backend = backend
        self._name = name

    def init(self, fingerprint: str) -> None:
        """Prepare the directory: provider from the mirror, backend, encryption.

        One that was prepared from the same files is ready already.
        """
        act = f"prepare the state {self._name}"
        marker = self._directory / "prepared"
        if not marker.exists() or marker.read_text(encoding="ascii") != fingerprint:
            self._run(act, "init", input=False, reconfigure=IsFlagged, json=IsFlagged)
            marker.write_text(fingerprint, encoding="ascii")
        if self._backend.kind == "pg":
            self._run(act, "workspace select", self._name, or_create=True)
        unsaved = self._directory / UNSAVED_STATE
        if unsaved.exists():
            # The backend was away when an apply ended: what it made is known here alone.
            self._run(f"save the state {self._name}", "state push", str(unsaved))
            unsaved.unlink()

    def plan(self, *, destroy: bool = False) -> tuple[Path, dict[str, Any]]:
        """Plan; return the saved, encrypted plan and its JSON document."""
        path = self._directory / "new.tfplan"
        path.unlink(missing_ok=True)
        options: dict[str, Any] = {"destroy": IsFlagged} if destroy else {}
        self._run(
            f"plan {self._name}",
            "plan",
            good=(0, 2),
            out=str(path),
            input=False,
            detailed_exitcode=IsFlagged,
            parallelism=REFRESH_PARALLELISM,
            json=IsFlagged,
            **options,
        )
        return path, self.show(path)

    def show(self, path: Path) -> dict[str, Any]:
        """Return the JSON document of a saved plan."""
        act = f"read the plan of {self._name}"
        return self._document(act, self._run(act, "show", str(path), json=IsFlagged))

    def keep_plan(self, path: Path, plan_hash: str) -> Path:
        """Keep a saved plan under its hash; older ones of this cluster are dropped."""
        kept = self.kept_plan(plan_hash)
        for old in self._directory.glob("plan-*.tfplan"):
            old.unlink()
        return path.rename(kept)

    def kept_plan(self, plan_hash: str) -> Path:
        """Return where the plan with this hash is kept; it need not exist."""
        return self._directory / f"plan-{plan_hash}.tfplan"

    def apply(self, path: Path, *, parallelism: int, on_progress: OnProgress | None = None) -> None:
        """Apply a saved plan.

        Raises:
            Conflict: the state has changed since, so the plan is stale.
        """

        def on_line(line: str) -> None:
            event = _progress(line)
            if event is not None and on_progress is not None:
                on_progress(event)

        self._run(
            f"apply the plan of {self._name}",
            "apply",
            str(path),
            on_line=on_line,
            input=False,
            parallelism=parallelism,
            json=IsFlagged,
        )

    def state_machines(self) -> dict[str, StateEntry]:
        """Return the machines that the state holds, by name; empty for no state."""
        act = f"read the state {self._name}"
        document = self._document(act, self._run(act, "show", json=IsFlagged))
        root = (document.get("values") or {}).get("root_module") or {}
        return {
            str(entry["index"]): StateEntry(
                vm_id=int(entry["values"].get("vm_id") or 0), is_tainted=bool(entry.get("tainted"))
            )
            for entry in root.get("resources") or []
            if entry.get("type") == MACHINE_TYPE and "index" in entry
        }

    def import_machine(self, name: str, node: str, vm_id: int) -> None:
        """Take an existing machine into the state."""
        self._run(
            f"adopt machine {name}", "import", machine_address(name), f"{node}/{vm_id}", input=False
        )

    def untaint_machine(self, name: str) -> None:
        """Mark a machine as whole."""
        self._run(f"untaint machine {name}", "untaint", machine_address(name))

    def forget_machine(self, name: str) -> None:
        """Drop a machine from the state; the machine itself is not touched."""
        if name in self.state_machines():
            self._run(f"forget machine {name}", "state rm", machine_address(name))

    def remove_state(self, credential: Mapping[str, str]) -> bool:
        """Remove the whole state when it holds nothing; return False when it was absent.

        Raises:
            Conflict: machines are still in it.
        """
        left = sorted(self.state_machines())
        if left:
            raise Conflict(
                f"Unable to remove the state {self._name}: it still holds {', '.join(left)}. "
                "Destroy them first."
            )
        if self._backend.kind == "http":
            was_there = self._backend.remove(self._name, credential)
        else:
            act = f"remove the state {self._name}"
            self._run(act, "workspace select", "default")
            self._run(act, "workspace delete", self._name)
            was_there = True
        # Nothing of the cluster stays behind on the worker either.
        shutil.rmtree(self._directory, ignore_errors=True)
        return was_there

    def _document(self, act: str, outcome: Outcome) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(outcome.output)
        except ValueError:
            raise PermanentError(
                f"Unable to {act}: tofu gave no JSON document. Check the binary of the block."
            ) from None
        return document

    def _run(
        self, act: str, command: str, *args: str, good: Sequence[int] = (0,), **options: Any
    ) -> Outcome:
        outcome: Outcome = self._tofu.cmd(command, *args, **options)
        if outcome.exit_code not in good and self._breaks_lock(act, outcome):
            outcome = self._tofu.cmd(command, *args, **options)
        if outcome.exit_code not in good:
            raise failure(act, outcome.problem)
        return outcome

    def _breaks_lock(self, act: str, outcome: Outcome) -> bool:
        """Break the state's lock if a dead run left it; return whether it was broken."""
        held = lock_info(" ".join(f"{d.summary} {d.detail}" for d in outcome.diagnostics))
        if held is None:
            return False
        is_ours = held.host == socket.gethostname()
        # Commands of this host hold the run lock as long as they live, and we had it just now.
        if not is_ours and held.age_seconds < FOREIGN_LOCK_SECONDS:
            raise Conflict(
                f"Unable to {act}: {held.who} holds the state's lock for {held.age_seconds:.0f} s. "
                f"Wait for that run; its lock counts as dead after {FOREIGN_LOCK_SECONDS:.0f} s."
            )
        logger.warning(
            "The state's lock %s of %s, %.0f s old, belongs to a run that is dead: it is broken.",
            held.lock_id,
            held.who,
            held.age_seconds,
        )
        broken = self._tofu.cmd("force-unlock", held.lock_id, force=IsFlagged)
        if broken.exit_code != 0 and lock_info(broken.problem) is not None:
            raise failure(act, broken.problem)
        return True


def _progress(line: str) -> Progress | None:
    """Read one line of an apply's event stream; None for what is no event of a resource."""
    if '"apply_' not in line:
        return None
    try:
        event = json.loads(line)
        kind, hook = event["type"], event["hook"]
        return Progress(
            address=str(hook["resource"]["addr"]),
            action=str(hook.get("action", "")),
            stage=kind.removeprefix("apply_"),
            seconds=float(hook.get("elapsed_seconds") or 0),
        )
    except (ValueError, KeyError, TypeError):
        return None


def workspaces_root() -> Path:
    """Return where the working directories of all clusters of this user are."""
    return base_directory() / f"infraflows-tofu-{os.getuid()}"


class TofuWorkspace(Block):
    """OpenTofu on the worker, and where it keeps states."""

    _block_type_name = "OpenTofu workspace"
    _block_type_slug = "infraflows-tofu"
    _description = "The OpenTofu binary, its provider mirror, and the backend of its states."

    binary: str = Field(description="Path of the tofu binary on the worker.")
    provider_mirror: str = Field(description="Directory with the providers, as a file mirror.")
    backend: Kind = Field(default="http", description="Backend of the states: http or pg.")
    url: str = Field(description="Base URL of the states, or the PostgreSQL URL.")
    locking: Locking = Field(
        default="webdav", description="How an HTTP backend locks: webdav or gitlab."
    )
    ca_file: str = Field(default="", description="CA of the backend's certificate.")
    credential: str = Field(description="OpenBao path with username and password.")

    @property
    def state_backend(self) -> StateBackend:
        """The place of the states."""
        return StateBackend(self.backend, self.url, self.locking, self.ca_file)

    def directory(self, name: str) -> Path:
        """Return the working directory of one cluster, made if absent, in memory and private."""
        base = workspaces_root()
        own = base / f"{name}-{self._site()}"
        for path in (base, own):
            path.mkdir(mode=0o700, exist_ok=True)
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                raise PermanentError(
                    f"Unable to use {path}: it belongs to another user. Remove it."
                )
        return own

    def _site(self) -> str:
        """Tell sites apart whose clusters bear one name: what one left is nothing to another."""
        ca_file = Path(self.ca_file) if self.ca_file else None
        ca = ca_file.read_bytes() if ca_file and ca_file.is_file() else b""
        return hashlib.sha256(self.url.encode() + b"\0" + ca).hexdigest()[:8]

    def session(
        self,
        name: str,
        module: Path,
        variables: Mapping[str, Any],
        environment: Mapping[str, str],
        state_credential: Mapping[str, str],
        ca_files: Sequence[str],
    ) -> TofuSession:
        """Write the cluster's directory anew and return OpenTofu in it, initialised."""
        directory = self.directory(name)
        fingerprint = self._write(directory, name, module, variables, ca_files)
        handed = {**environment, **self.state_backend.environment(state_credential)}
        process = TofuProcess(
            self.binary,
            directory,
            {**self._surroundings(directory), **handed},
            [value for key, value in handed.items() if re.search(r"TOKEN|PASSWORD", key)],
        )
        session = TofuSession(process, directory, self.state_backend, name)
        session.init(fingerprint)
        return session

    def _surroundings(self, directory: Path) -> dict[str, str]:
        # Sockets are made below it, and the kernel allows 107 characters for their paths.
        short = hashlib.sha256(directory.name.encode()).hexdigest()[:8]
        scratch = directory.parent / f"t-{short}"
        scratch.mkdir(mode=0o700, exist_ok=True)
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(directory),
            "USER": os.environ.get("USER", "infraflows"),
            "TMPDIR": str(scratch),
            "TF_CLI_CONFIG_FILE": str(directory / "tofu.rc"),
            "TF_IN_AUTOMATION": "1",
            "CHECKPOINT_DISABLE": "1",
            "SSL_CERT_FILE": str(directory / "ca-bundle.pem"),
        }

    def _write(
        self,
        directory: Path,
        name: str,
        module: Path,
        variables: Mapping[str, Any],
        ca_files: Sequence[str],
    ) -> str:
        """Write the directory's files; return a hash of those that `init` looks at."""
        for stale in directory.glob("*.tf"):
            stale.unlink()
        looked_at = hashlib.sha256(f"{self.binary}\n{self.provider_mirror}\n".encode())
        for source in sorted(module.glob("*.tf")):
            shutil.copyfile(source, directory / source.name)
            looked_at.update(source.read_bytes())
        mirror = json.dumps(self.provider_mirror)
        texts = {
            "backend.tf.json": json.dumps(self.state_backend.document(name), indent=2),
            "terraform.tfvars.json": json.dumps(variables, indent=2, sort_keys=True),
            "tofu.rc": "provider_installation {\n  filesystem_mirror {\n    path = "
            f"{mirror}\n  }}\n}}\n",
            "ca-bundle.pem": "\n".join(
                Path(file).read_text(encoding="utf-8") for file in dict.fromkeys(ca_files) if file
            ),
        }
        for file, text in texts.items():
            (directory / file).write_text(text, encoding="utf-8")
        looked_at.update(texts["backend.tf.json"].encode())
        return looked_at.hexdigest()

    def version(self) -> str | None:
        """Return the version of the binary; None when it cannot be run."""
        directory = self.directory("version")
        process = TofuProcess(self.binary, directory, self._surroundings(directory), [])
        (directory / "tofu.rc").write_text("", encoding="utf-8")
        outcome: Outcome = process.cmd("version", json=IsFlagged)
        try:
            return str(json.loads(outcome.output)["terraform_version"])
        except (ValueError, KeyError):
            return None

    def provider_version(self) -> str | None:
        """Return the newest Proxmox provider in the mirror; None when there is none."""
        found = Path(self.provider_mirror).glob("*/bpg/proxmox/*/*/terraform-provider-proxmox_v*")
        versions = {path.parent.parent.name for path in found}
        return max(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)], default=None)


def tofu(environment: str) -> TofuWorkspace:
    """Return the OpenTofu workspace of an environment, by its block document.

    Raises:
        NotFound: the set-up has not been run for this environment.
    """
    return document(TofuWorkspace, environment)
