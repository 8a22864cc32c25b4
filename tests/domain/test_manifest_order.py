from __future__ import annotations

import random
from typing import Any

import pytest

from domain.errors import InvalidSpec
from domain.manifest_order import key_of, waves


def thing(kind: str, name: str, version: str = "v1", namespace: str = "") -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


OBJECTS = [
    thing("L2Advertisement", "pool", "metallb.io/v1beta1", "metallb-system"),
    thing("IPAddressPool", "pool", "metallb.io/v1beta1", "metallb-system"),
    thing("Deployment", "web", "apps/v1", "web"),
    thing("ClusterRoleBinding", "readers", "rbac.authorization.k8s.io/v1"),
    thing("ClusterRole", "readers", "rbac.authorization.k8s.io/v1"),
    thing("NetworkPolicy", "deny", "networking.k8s.io/v1", "web"),
    thing("CustomResourceDefinition", "ipaddresspools.metallb.io", "apiextensions.k8s.io/v1"),
    thing("Namespace", "web"),
]


def test_what_is_needed_comes_in_an_earlier_wave() -> None:
    order = [[m["kind"] for m in wave.objects] for wave in waves(OBJECTS)]

    assert order == [
        ["CustomResourceDefinition", "Namespace"],
        ["NetworkPolicy", "ClusterRole"],
        ["ClusterRoleBinding"],
        ["Deployment"],
        ["IPAddressPool"],
        ["L2Advertisement"],
    ]


def test_the_order_of_the_files_does_not_matter() -> None:
    shuffled = list(OBJECTS)
    random.Random(7).shuffle(shuffled)  # noqa: S311 - a fixed order, no secret

    assert waves(shuffled) == waves(OBJECTS)


def test_objects_without_identity_and_given_twice_are_told_together() -> None:
    bad = [
        {"kind": "ConfigMap", "metadata": {}},
        thing("Namespace", "web"),
        thing("Namespace", "web"),
        {"apiVersion": "v1", "kind": "Pod", "metadata": "text"},
    ]

    with pytest.raises(InvalidSpec) as caught:
        waves(bad)

    assert caught.value.problems == (
        "ConfigMap: has no apiVersion. Add it",
        "ConfigMap: has no metadata.name. Add it",
        "v1 Pod: has no metadata.name. Add it",
        "Namespace web: is given 2 times. Keep one of them",
    )


def test_one_object_in_two_versions_of_its_group_is_given_twice() -> None:
    with pytest.raises(InvalidSpec, match="IPAddressPool m/a: is given 2 times"):
        waves(
            [
                thing("IPAddressPool", "a", "metallb.io/v1beta1", "m"),
                thing("IPAddressPool", "a", "metallb.io/v1beta2", "m"),
            ]
        )


def test_a_key_reads_as_people_write_it() -> None:
    assert key_of(OBJECTS[2]).text == "Deployment web/web"
    assert key_of(OBJECTS[7]).text == "Namespace web"
