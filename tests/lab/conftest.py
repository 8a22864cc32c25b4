"""One cluster for all tests of the lab that need one: built once, looked at by many.

`demo` is the lab's own cluster, three servers and two workers, from an empty pool, run twice.
The tests that change it leave it as its spec says; the last file removes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.driver import Driver, RunView
from lab.holdings import Holdings
from lab.layout import ENVIRONMENT, Layout
from lab.secret_search import ArgumentWatch
from lab.services.credentials import GIVEN_TO_THE_PRODUCT, credential
from lab.services.openbao_setup import KV_MOUNT, root_client

SPEC_FILE = Path(__file__).parents[2] / "deployments" / "environments" / "lab.yaml"
PUBLIC_FIELDS = frozenset(
    {"username", "token_id", "key_name", "algorithm", "host", "port", "database"}
)


# After these the cluster is gone: they come last of those that need it.
REMOVES_THE_CLUSTER = "test_decommission.py"
NEEDS_THE_CLUSTER = "test_onboard.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what needs the demo's cluster run before its removal, whatever the files are called."""
    needing = [item for item in items if item.path.name == NEEDS_THE_CLUSTER]
    others = [item for item in items if item.path.name != NEEDS_THE_CLUSTER]
    removing = (n for n, item in enumerate(others) if item.path.name == REMOVES_THE_CLUSTER)
    first = next(removing, len(others))
    items[:] = [*others[:first], *needing, *others[first:]]


@dataclass
class Demo:
    """The cluster and how it came to be."""

    spec: dict[str, Any]
    before: Holdings
    """What the lab held before the cluster."""
    first: RunView
    second: RunView
    driver: Driver = field(repr=False)
    argvs: frozenset[bytes] = field(repr=False)
    """The argv of every process that was seen during the first run."""
    secrets: dict[str, str] = field(repr=False)
    """Every secret that had to do with it, by a name that may be told."""

    @property
    def name(self) -> str:
        return str(self.spec["name"])


def _without_pem_frame(text: str) -> str:
    """Return one whole line of a key's base64: the frame is the same for every key."""
    return text.splitlines()[1]


def gather_secrets(layout: Layout, cluster: str) -> dict[str, str]:
    """Read, with the administrator's rights, every secret that the runs had in their hands."""
    import base64

    found = {
        f"{system}'s {part}": value
        for system in GIVEN_TO_THE_PRODUCT
        for part, value in credential(layout, system).items()
        if part not in PUBLIC_FIELDS
    }
    for system in ("git", "state"):
        login = credential(layout, system)
        found[f"{system}'s login"] = f"{login['username']}:{login['password']}"
    bao = root_client(layout)

    def read(path: str) -> dict[str, str]:
        answered: dict[str, str] = bao.call("GET", f"{KV_MOUNT}/data/{path}")["data"]["data"]
        return answered

    found |= {f"the cluster's {key}": v for key, v in read(f"clusters/{cluster}/rke2").items()}
    kubeconfig = yaml.safe_load(read(f"clusters/{cluster}/kubeconfig")["kubeconfig"])
    key = kubeconfig["users"][0]["user"]["client-key-data"]
    # A line from the middle, as it stands in a kubeconfig and as it stands in a PEM file.
    found["the administrator's key (base64)"] = key[80:160]
    found["the administrator's key (PEM)"] = _without_pem_frame(base64.b64decode(key).decode())
    found["the worker's secret id"] = layout.secret_id_file.read_text().strip()
    return found


@pytest.fixture(scope="session")
def driver(lab: Layout) -> Driver:
    """The lab, set up, with its usual gate and no fault."""
    made = Driver(lab)
    made.set_up()
    made.clear_faults()
    made.set_gate("automatic")
    return made


@pytest.fixture(scope="session")
def demo(driver: Driver) -> Demo:
    """The cluster after its first and its second run."""
    spec = yaml.safe_load(SPEC_FILE.read_text())
    assert spec["environment"] == ENVIRONMENT
    if driver.inventory().of(spec["name"]).lines():  # of an earlier session whose lab was kept
        driver.destroy(spec)
    before = driver.inventory()
    with ArgumentWatch().watching() as watch:
        first = driver.complete(driver.start("bootstrap-cluster/lab", spec))
    secrets = gather_secrets(driver.layout, spec["name"])
    second = driver.complete(driver.start("bootstrap-cluster/lab", spec))
    return Demo(spec, before, first, second, driver, frozenset(watch.seen), secrets)
