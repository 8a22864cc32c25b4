from __future__ import annotations

from typing import Any

import pytest

from domain.errors import InvalidSpec
from domain.manifest_order import key_of, waves
from domain.repository_layout import RepositoryLocation, checked_path
from domain.specs import EXAMPLE, ClusterSpec, parse_spec
from tasks.kubernetes import render
from tasks.kubernetes.render import MANIFESTS, objects_of, platform_files
from tasks.kubernetes.vendor_definitions import SOURCES, stripped, without_descriptions
from tasks.kubernetes.yaml_documents import load_documents

REPOSITORY = RepositoryLocation("https://git.example.org:8443/infrastructure.git", "main")
PRIVILEGED = {"metallb-system", "longhorn-system", "monitoring"}
ALL_OFF = {
    "metallb": None,
    "ingress_nginx": False,
    "longhorn": False,
    "argo_cd": False,
    "monitoring": False,
}
Objects = list[dict[str, Any]]


def spec_with(**platform: Any) -> ClusterSpec:
    return parse_spec({**EXAMPLE, "platform": {**EXAMPLE["platform"], **platform}})


@pytest.fixture(scope="module")
def objects() -> Objects:
    return objects_of(platform_files(spec_with(), REPOSITORY))


def of_kind(objects: Objects, kind: str) -> dict[str, dict[str, Any]]:
    found = [item for item in objects if item["kind"] == kind]
    return {
        f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}": item
        for item in found
    }


def namespaces(objects: Objects) -> set[str]:
    return {item["metadata"]["name"] for item in objects if item["kind"] == "Namespace"}


def test_the_same_spec_gives_the_same_files() -> None:
    assert platform_files(spec_with(), REPOSITORY) == platform_files(spec_with(), REPOSITORY)


def test_every_file_lies_in_the_clusters_own_directory() -> None:
    for path in platform_files(spec_with(), REPOSITORY):
        assert checked_path(path).startswith("clusters/demo/platform/")


def test_everything_has_one_identity_and_a_place_in_the_order(objects: Objects) -> None:
    ordered = waves(objects)

    assert sum(len(wave.objects) for wave in ordered) == len(objects)
    assert {m["kind"] for m in ordered[0].objects} == {"Namespace", "CustomResourceDefinition"}
    assert {m["kind"] for m in ordered[-1].objects} == {"L2Advertisement", "Application"}


def test_no_placeholder_is_left(objects: Objects) -> None:
    for path, text in platform_files(spec_with(), REPOSITORY).items():
        assert "@{" not in text, path


def test_every_namespace_denies_all_traffic_at_first(objects: Objects) -> None:
    policies = of_kind(objects, "NetworkPolicy")

    for name in namespaces(objects):
        denied = policies[f"{name}/default-deny"]["spec"]
        assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_every_namespace_enforces_a_pod_security_level(objects: Objects) -> None:
    for found in of_kind(objects, "Namespace").values():
        name, labels = found["metadata"]["name"], found["metadata"]["labels"]
        level = labels["pod-security.kubernetes.io/enforce"]
        assert (level == "privileged") == (name in PRIVILEGED), name
        assert labels["pod-security.kubernetes.io/audit"] == "restricted"


def test_every_namespace_has_limits_and_a_quota(objects: Objects) -> None:
    for name in namespaces(objects):
        assert f"{name}/container-defaults" in of_kind(objects, "LimitRange")
        assert f"{name}/namespace" in of_kind(objects, "ResourceQuota")


def test_the_read_only_role_reads_no_secret_and_changes_nothing(objects: Objects) -> None:
    role = of_kind(objects, "ClusterRole")["/infraflows-operator-read-only"]

    for rule in role["rules"]:
        assert set(rule["verbs"]) <= {"get", "list", "watch"}
        assert "secrets" not in rule.get("resources", [])
        if "" in rule.get("apiGroups", []):
            assert "*" not in rule["resources"]


def test_the_pool_is_the_specs_and_is_announced(objects: Objects) -> None:
    pool = of_kind(objects, "IPAddressPool")["metallb-system/services"]
    announced = of_kind(objects, "L2Advertisement")["metallb-system/services"]

    assert pool["spec"]["addresses"] == ["10.90.0.200-10.90.0.219"]
    assert announced["spec"]["ipAddressPools"] == ["services"]


def test_argo_cds_root_is_the_directory_that_is_applied(objects: Objects) -> None:
    root = of_kind(objects, "Application")["argocd/platform"]["spec"]
    project = of_kind(objects, "AppProject")["argocd/platform"]["spec"]

    assert root["source"]["path"] == "clusters/demo/platform"
    assert root["source"]["repoURL"] == REPOSITORY.url
    assert project["sourceRepos"] == [REPOSITORY.url]
    allowed = {(item["group"], item["kind"]) for item in project["clusterResourceWhitelist"]}
    used = {
        (key_of(item).group, item["kind"])
        for item in objects
        if not item["metadata"].get("namespace")
    }
    assert used <= allowed
    git = of_kind(objects, "NetworkPolicy")["argocd/allow-git"]["spec"]["egress"][0]["ports"]
    assert git == [{"protocol": "TCP", "port": 8443}]


def test_alerts_know_the_size_and_keep_prometheus_own_templates(objects: Objects) -> None:
    groups = of_kind(objects, "PrometheusRule")["monitoring/cluster"]["spec"]["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}

    assert rules["EtcdMembersMissing"]["expr"].endswith("< 3")
    assert rules["NodesMissing"]["expr"].endswith("< 5")
    assert "{{ $labels.node }}" in rules["NodeNotReady"]["annotations"]["summary"]


def test_one_storage_class_is_the_default_by_the_clusters_size() -> None:
    small = parse_spec(
        {
            **EXAMPLE,
            "control_plane": {**EXAMPLE["control_plane"], "count": 1},
            "workers": {"count": 0},
        }
    )
    for spec, default in ((spec_with(), "/longhorn"), (small, "/longhorn-single")):
        classes = of_kind(objects_of(platform_files(spec, REPOSITORY)), "StorageClass")
        annotation = "storageclass.kubernetes.io/is-default-class"
        chosen = [
            n for n, c in classes.items() if c["metadata"]["annotations"][annotation] == "true"
        ]
        assert chosen == [default]


def test_a_class_parameters_do_not_depend_on_the_spec() -> None:
    text = (MANIFESTS / "30-longhorn" / "storage-classes.yaml").read_text()

    assert "@{" not in text.split("parameters:")[1].split("---")[0]


@pytest.mark.parametrize(
    ("part", "directory", "namespace"),
    [
        ("metallb", "10-metallb", "metallb-system"),
        ("ingress_nginx", "20-ingress-nginx", "ingress-nginx"),
        ("longhorn", "30-longhorn", "longhorn-system"),
        ("monitoring", "40-monitoring", "monitoring"),
        ("argo_cd", "50-argo-cd", "argocd"),
    ],
)
def test_a_part_that_is_off_leaves_nothing(part: str, directory: str, namespace: str) -> None:
    files = platform_files(spec_with(**{part: ALL_OFF[part]}), REPOSITORY)

    assert not [path for path in files if f"/{directory}/" in path]
    objects = objects_of(files)
    assert namespace not in namespaces(objects)
    for item in objects:
        assert item["metadata"].get("namespace") != namespace
        selected = item.get("spec", {}).get("namespaceSelector") or {}
        assert namespace not in (selected.get("matchNames") or [])


def test_with_everything_off_the_base_is_left() -> None:
    objects = objects_of(platform_files(spec_with(**ALL_OFF), REPOSITORY))

    assert namespaces(objects) == {"default", "infraflows-probe"}
    assert not of_kind(objects, "CustomResourceDefinition")


def test_a_repository_address_with_a_credential_is_refused() -> None:
    leaky = RepositoryLocation("https://me:planted@git.example.org/x.git", "main")

    with pytest.raises(InvalidSpec, match="holds a credential") as caught:
        platform_files(spec_with(), leaky)
    assert "planted" not in str(caught.value)


def test_an_unknown_placeholder_names_the_file() -> None:
    with pytest.raises(InvalidSpec, match=r"x\.yaml"):
        render._filled("name: @{ghost}", {}, "x.yaml")


def test_bare_signs_and_words_are_text_as_in_yaml_1_2() -> None:
    text = "a: =\nb: on\nc: yes\nd: true\ne: 2026-01-01\nf: 1\ng: ~\n"

    assert load_documents(text, "x") == [
        {"a": "=", "b": "on", "c": "yes", "d": True, "e": "2026-01-01", "f": 1, "g": None}
    ]


def test_json_below_comments_is_read_as_yaml_would() -> None:
    text = '# a comment\n# another\n{"a": "=", "b": [1, true, null]}\n'

    assert load_documents(text, "x") == [{"a": "=", "b": [1, True, None]}]
    assert load_documents("# c\n{a: 1}\n---\nb: 2\n", "x") == [{"a": 1}, {"b": 2}]


def test_a_text_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="holds something that is no object"):
        load_documents("- a\n", "x")
    with pytest.raises(InvalidSpec, match="is not YAML at line 2"):
        load_documents("a: 1\nb: ]\n", "x")


def test_only_prose_is_stripped_from_a_schema() -> None:
    schema = {
        "description": "prose",
        "properties": {"description": {"type": "string", "description": "prose"}},
        "items": [{"description": "prose", "type": "object"}],
        "default": {"description": "a value"},
    }

    assert without_descriptions(schema) == {
        "properties": {"description": {"type": "string"}},
        "items": [{"type": "object"}],
        "default": {"description": "a value"},
    }


def test_the_vendored_definitions_are_stripped_and_listed() -> None:
    versions = (MANIFESTS / "VERSIONS.md").read_text()
    for source in SOURCES:
        assert f"`{source.module}` | {source.version}" in versions
        directory = MANIFESTS / source.part / "definitions"
        assert sorted(path.name for path in directory.iterdir()) == sorted(source.files)
        for path in directory.iterdir():
            text = path.read_text()
            assert text.startswith(f"# {source.module} {source.version}, ")
            (found,) = load_documents(text, path.name)
            assert found["kind"] == "CustomResourceDefinition"
            assert stripped(found) == found


def argo_cd_workloads(objects: Objects) -> dict[str, dict[str, Any]]:
    found = {**of_kind(objects, "Deployment"), **of_kind(objects, "StatefulSet")}
    return {name: item for name, item in found.items() if name.startswith("argocd/")}


def test_argo_cds_pods_satisfy_the_strictest_pod_security_level(objects: Objects) -> None:
    for name, workload in argo_cd_workloads(objects).items():
        pod = workload["spec"]["template"]["spec"]
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"requests", "limits"} == set(container["resources"]), name


def test_each_part_of_argo_cd_has_an_account_a_service_and_a_budget(objects: Objects) -> None:
    workloads = argo_cd_workloads(objects)
    services, budgets = of_kind(objects, "Service"), of_kind(objects, "PodDisruptionBudget")

    parts = ("application-controller", "repo-server", "server", "redis")
    assert set(workloads) == {f"argocd/argocd-{part}" for part in parts}
    for name, workload in workloads.items():
        template = workload["spec"]["template"]
        account = template["spec"]["serviceAccountName"]
        assert f"argocd/{account}" in of_kind(objects, "ServiceAccount")
        wanted = workload["spec"]["selector"]["matchLabels"]
        assert services[name]["spec"]["selector"] == wanted
        assert budgets[name]["spec"]["selector"]["matchLabels"] == wanted


def test_what_argo_cds_pods_read_of_configuration_exists(objects: Objects) -> None:
    maps = of_kind(objects, "ConfigMap")
    for workload in argo_cd_workloads(objects).values():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("configMapKeyRef")
                if reference:
                    assert reference["key"] in maps[f"argocd/{reference['name']}"]["data"]


def test_only_the_controller_may_change_what_runs(objects: Objects) -> None:
    server = of_kind(objects, "ClusterRole")["/argocd-server"]
    account = of_kind(objects, "ServiceAccount")["argocd/argocd-repo-server"]

    assert all(set(rule["verbs"]) <= {"get", "list"} for rule in server["rules"])
    assert all("secrets" not in rule["resources"] for rule in server["rules"])
    assert account["automountServiceAccountToken"] is False


def test_keys_that_argo_cd_owns_are_not_declared(objects: Objects) -> None:
    secret = of_kind(objects, "Secret")["argocd/argocd-secret"]

    assert "data" not in secret
    assert "stringData" not in secret


def test_images_come_from_the_registry_that_the_spec_names(objects: Objects) -> None:
    def images(found: Objects) -> set[str]:
        return {
            container["image"]
            for workload in argo_cd_workloads(found).values()
            for container in workload["spec"]["template"]["spec"]["containers"]
        }

    mirrored = objects_of(
        platform_files(spec_with(image_registry="registry.example.org:5000/mirror"), REPOSITORY)
    )
    assert {image.partition("/")[0] for image in images(objects)} == {"quay.io", "docker.io"}
    assert images(mirrored) == {
        "registry.example.org:5000/mirror/argoproj/argocd:v3.6.1",
        "registry.example.org:5000/mirror/library/redis:7.2.11-alpine",
    }


def test_a_registry_with_a_scheme_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="is not the address of a registry"):
        spec_with(image_registry="https://registry.example.org")
