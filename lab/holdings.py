"""What really exists in the lab's systems, read with its administrator's rights.

Why it exists: a proof that nothing was duplicated, orphaned or left behind is worth nothing when
it is made with the eyes of the one who may have left it. What it promises: nothing is changed, and
no secret's value is read. What it refuses: to judge; it lists.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import dns.query
import dns.tsig
import dns.tsigkeyring
import dns.zone

from lab.layout import DNS_PORT, GATEWAY, GIT_BRANCH, GIT_REPOSITORY, NODE_ADDRESSES, ZONE, Layout
from lab.services.credentials import credential
from lab.services.https_probe import request
from lab.services.namespace import inside
from lab.services.openbao_setup import KV_MOUNT, root_client
from lab.services.state_store import StateStore

TEMPLATE_ID = 9000
_OWN_NAMES = frozenset({"@", "ns", "openbao", "site", *NODE_ADDRESSES})


class ProxmoxRefused(Exception):
    """The API answered with an error."""


@dataclass(frozen=True)
class ProxmoxAdmin:
    """The hypervisors' API with the token of the lab's administrator."""

    layout: Layout

    def call(self, method: str, path: str, **parameters: Any) -> Any:
        login = credential(self.layout, "proxmox-admin")
        token = f"PVEAPIToken={login['token_id']}={login['token_secret']}"
        url = f"{self.layout.proxmox_url}/api2/json{path}"
        if method in ("GET", "DELETE") and parameters:
            url, parameters = f"{url}?{urlencode(parameters)}", {}
        reply = request(
            self.layout,
            method,
            url,
            json=parameters or None,
            headers={"Authorization": token},
            timeout_seconds=60.0,
        )
        if reply.status_code >= 400:
            raise ProxmoxRefused(f"{method} {path}: {reply.status_code} {reply.reason_phrase}")
        return reply.json().get("data")


@dataclass(frozen=True)
class Vm:
    """One machine as the hypervisors hold it."""

    vm_id: int
    name: str
    node: str
    pool: str
    status: str
    lock: str
    volumes: tuple[str, ...]


@dataclass(frozen=True)
class Holdings:
    """Everything of clusters that exists in the lab."""

    machines: tuple[Vm, ...]
    orphaned_volumes: tuple[str, ...]
    """Volumes of no machine that exists, or that their machine does not name."""
    running_tasks: tuple[str, ...]
    pools: tuple[str, ...]
    secret_paths: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[str, ...]
    states: tuple[str, ...]
    state_locks: tuple[str, ...]

    def of(self, cluster: str) -> Holdings:
        """Only what bears the cluster's name; volumes and tasks bear none and stay."""

        def own(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(t for t in texts if cluster in _words(t))

        return Holdings(
            machines=tuple(
                vm
                for vm in self.machines
                if vm.pool == cluster or vm.name.startswith(f"{cluster}-")
            ),
            orphaned_volumes=self.orphaned_volumes,
            running_tasks=self.running_tasks,
            pools=own(self.pools),
            secret_paths=own(self.secret_paths),
            names=own(self.names),
            files=own(self.files),
            states=own(self.states),
            state_locks=own(self.state_locks),
        )

    def lines(self) -> list[str]:
        """One line for each thing that exists, for a test that fails."""
        return [f"{kind}: {thing}" for kind, things in vars(self).items() for thing in things]


def _words(text: str) -> set[str]:
    """A name and every leading part of it: `a-b-server-1` bears `a` and `a-b`."""
    words: set[str] = set()
    for part in text.replace("/", " ").replace(".", " ").split():
        pieces = part.split("-")
        words.update("-".join(pieces[:end]) for end in range(1, len(pieces) + 1))
        words.update("-".join(pieces[start:]) for start in range(len(pieces)))
    return words


def look(layout: Layout) -> Holdings:
    """Look into every system."""
    api = ProxmoxAdmin(layout)
    machines = _machines(api)
    states = StateStore(layout.state_directory)
    known = sorted(p.name for p in layout.state_directory.iterdir() if p.is_dir())
    return Holdings(
        machines=machines,
        orphaned_volumes=_orphans(api, machines),
        running_tasks=tuple(
            f"{task['type']} {task.get('id', '')} on {task['node']}"
            for task in api.call("GET", "/cluster/tasks")
            if not task.get("endtime")
        ),
        pools=tuple(sorted(pool["poolid"] for pool in api.call("GET", "/pools"))),
        secret_paths=tuple(secret_paths(layout, "clusters/")),
        names=tuple(names_in_dns(layout)),
        files=tuple(_files(layout)),
        states=tuple(name for name in known if states.read(name) is not None),
        state_locks=tuple(name for name in known if states.lock_holder(name) is not None),
    )


def _machines(api: ProxmoxAdmin) -> tuple[Vm, ...]:
    found = []
    for entry in api.call("GET", "/cluster/resources", type="vm"):
        if entry["vmid"] == TEMPLATE_ID:
            continue
        config = api.call("GET", f"/nodes/{entry['node']}/qemu/{entry['vmid']}/config")
        disks = (str(value).split(",")[0] for value in config.values())
        found.append(
            Vm(
                vm_id=int(entry["vmid"]),
                name=str(entry.get("name", "")),
                node=str(entry["node"]),
                pool=str(entry.get("pool", "")),
                status=str(entry.get("status", "")),
                lock=str(config.get("lock", "")),
                volumes=tuple(sorted(d for d in disks if f"vm-{entry['vmid']}-" in d)),
            )
        )
    return tuple(sorted(found, key=lambda vm: vm.vm_id))


def _orphans(api: ProxmoxAdmin, machines: tuple[Vm, ...]) -> tuple[str, ...]:
    owned = {volume for vm in machines for volume in vm.volumes}
    orphans = set()
    for storage in api.call("GET", "/cluster/resources", type="storage"):
        where = f"/nodes/{storage['node']}/storage/{quote(storage['storage'])}/content"
        for volume in api.call("GET", where):
            vm_id = volume.get("vmid")
            if vm_id and int(vm_id) != TEMPLATE_ID and volume["volid"] not in owned:
                orphans.add(str(volume["volid"]))
    return tuple(sorted(orphans))


def secret_paths(layout: Layout, prefix: str) -> list[str]:
    """Return OpenBao's secret paths below a prefix, which is empty or ends at a slash."""
    listed = root_client(layout).call(
        "GET", f"{KV_MOUNT}/metadata/{prefix}?list=true", absent_is_none=True
    )
    paths: list[str] = []
    for key in (listed or {"data": {"keys": []}})["data"]["keys"]:
        paths += secret_paths(layout, prefix + key) if key.endswith("/") else [prefix + key]
    return paths


def names_in_dns(layout: Layout) -> list[str]:
    """Return the names of the zone that are not the lab\'s own."""
    key = credential(layout, "dns")
    ring = dns.tsigkeyring.from_text({key["key_name"]: (key["algorithm"], key["secret"])})
    with inside(layout.namespace_path):
        zone = dns.zone.from_xfr(
            dns.query.xfr(GATEWAY, ZONE, port=DNS_PORT, keyring=ring, lifetime=20.0)
        )
    return sorted(name for node in zone.nodes if (name := node.to_text()) not in _OWN_NAMES)


def _files(layout: Layout) -> list[str]:
    repository = layout.git_directory / GIT_REPOSITORY
    argv = ["git", "-c", "safe.directory=*", f"--git-dir={repository}", "ls-tree", "-r"]
    done = subprocess.run(
        [*argv, "--name-only", GIT_BRANCH], capture_output=True, text=True, check=False
    )
    # A repository without a commit has no branch, and no files.
    return done.stdout.splitlines() if done.returncode == 0 else []
