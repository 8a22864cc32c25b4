"""Kubernetes' Pod Security level "restricted", judged without a cluster.

Exists so that a pod which the cluster would refuse is refused before anything is made, with all
reasons at once. Promises the same verdict as the API server's admission at the level `restricted`;
a test compares both, case by case. Refuses pods of Windows, for which other rules hold.
Rules: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
VOLUME_TYPES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
SECCOMP_TYPES = ("RuntimeDefault", "Localhost")
APPARMOR_TYPES = ("RuntimeDefault", "Localhost")
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
ADDABLE_CAPABILITIES = frozenset({"NET_BIND_SERVICE"})

Object = Mapping[str, Any]


@dataclass(frozen=True)
class PodFault:
    """One reason for which the level refuses a pod."""

    text: str
    fix: str


def pod_template(manifest: Object) -> Object | None:
    """Return the pod, or the template of pods, that an object holds; None if it holds none."""
    spec = manifest.get("spec") or {}
    match manifest.get("kind"):
        case "Pod":
            return manifest
        case "CronJob":
            found = ((spec.get("jobTemplate") or {}).get("spec") or {}).get("template")
        case "PodTemplate":
            found = manifest.get("template")
        case _:
            found = spec.get("template")
    return found if isinstance(found, Mapping) and "spec" in found else None


def containers(pod: Object) -> Iterator[Object]:
    """Return every container of a pod, of whatever kind."""
    for name in CONTAINER_LISTS:
        yield from pod["spec"].get(name) or []


def restricted_faults(pod: Object) -> list[PodFault]:
    """Return why the level `restricted` refuses a pod; empty when it does not."""
    spec = pod["spec"]
    security = spec.get("securityContext") or {}
    found = [
        *_host(spec),
        *_windows(spec, security),
        *_volumes(spec),
        *_sysctls(security),
        *_common("the pod", security),
        *_root_allowed("the pod", security),
        *_apparmor_annotations(pod),
    ]
    for container in containers(pod):
        found += _container(container, security)
    return found


def _host(spec: Object) -> Iterator[PodFault]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield PodFault(f"{field} is on", f"Remove {field}.")


def _windows(spec: Object, security: Object) -> Iterator[PodFault]:
    if (spec.get("os") or {}).get("name") == "windows":
        yield PodFault("it is a pod of Windows", "Remove os.name.")
    parts = [security, *((c.get("securityContext") or {}) for c in containers({"spec": spec}))]
    if any((part.get("windowsOptions") or {}).get("hostProcess") for part in parts):
        yield PodFault("windowsOptions.hostProcess is on", "Remove windowsOptions.")


def _volumes(spec: Object) -> Iterator[PodFault]:
    for volume in spec.get("volumes") or []:
        for kind in sorted(set(volume) - {"name"} - VOLUME_TYPES):
            yield PodFault(
                f"the volume {volume.get('name')} is a {kind}",
                f"Use one of {', '.join(sorted(VOLUME_TYPES))}.",
            )


def _sysctls(security: Object) -> Iterator[PodFault]:
    for entry in security.get("sysctls") or []:
        if entry.get("name") not in SYSCTLS:
            yield PodFault(f"the sysctl {entry.get('name')} is set", "Remove it.")


def _apparmor_annotations(pod: Object) -> Iterator[PodFault]:
    for name, value in ((pod.get("metadata") or {}).get("annotations") or {}).items():
        is_known = value in ("", "runtime/default") or str(value).startswith("localhost/")
        if name.startswith(APPARMOR_ANNOTATION) and not is_known:
            yield PodFault(f"the annotation {name} is {value}", "Use runtime/default.")


def _common(whose: str, security: Object) -> Iterator[PodFault]:
    """Judge what a pod's and a container's security context have in common."""
    if security.get("runAsUser") == 0:
        yield PodFault(f"{whose} runs as user 0", "Set runAsUser to a number above 0.")
    profile = (security.get("seccompProfile") or {}).get("type")
    if profile is not None and profile not in SECCOMP_TYPES:
        yield PodFault(f"{whose} has the seccomp profile {profile}", "Use RuntimeDefault.")
    armour = (security.get("appArmorProfile") or {}).get("type")
    if armour is not None and armour not in APPARMOR_TYPES:
        yield PodFault(f"{whose} has the AppArmor profile {armour}", "Use RuntimeDefault.")
    options = security.get("seLinuxOptions") or {}
    if (
        (options.get("type") or "") not in SELINUX_TYPES
        or options.get("user")
        or options.get("role")
    ):
        yield PodFault(f"{whose} sets SELinux options", "Remove seLinuxOptions.")


def _root_allowed(whose: str, security: Object) -> Iterator[PodFault]:
    if security.get("runAsNonRoot") is False:
        yield PodFault(f"{whose} may run as root", "Set securityContext.runAsNonRoot to true.")


def _container(container: Object, of_pod: Object) -> Iterator[PodFault]:
    whose = f"container {container.get('name')}"
    security = container.get("securityContext") or {}
    yield from _common(whose, security)
    yield from _privileges(whose, security)
    yield from _inherited(whose, security, of_pod)
    yield from _reach_to_host(whose, container)
    if (security.get("procMount") or "Default") != "Default":
        yield PodFault(f"{whose} has procMount {security['procMount']}", "Remove procMount.")


def _privileges(whose: str, security: Object) -> Iterator[PodFault]:
    if security.get("privileged"):
        yield PodFault(f"{whose} is privileged", "Remove privileged.")
    if security.get("allowPrivilegeEscalation") is not False:
        yield PodFault(
            f"{whose} may gain privileges", "Set securityContext.allowPrivilegeEscalation to false."
        )
    capabilities = security.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield PodFault(
            f"{whose} keeps capabilities", "Set securityContext.capabilities.drop to [ALL]."
        )
    for name in capabilities.get("add") or []:
        if name not in ADDABLE_CAPABILITIES:
            yield PodFault(f"{whose} adds the capability {name}", "Remove it.")


def _inherited(whose: str, security: Object, of_pod: Object) -> Iterator[PodFault]:
    """Judge what a container may leave to its pod."""
    yield from _root_allowed(whose, security)
    if security.get("runAsNonRoot") is None and not of_pod.get("runAsNonRoot"):
        yield PodFault(f"{whose} may run as root", "Set securityContext.runAsNonRoot to true.")
    if not (security.get("seccompProfile") or of_pod.get("seccompProfile")):
        yield PodFault(
            f"{whose} has no seccomp profile",
            "Set securityContext.seccompProfile.type to RuntimeDefault.",
        )


def _reach_to_host(whose: str, container: Object) -> Iterator[PodFault]:
    for port in container.get("ports") or []:
        if port.get("hostPort"):
            yield PodFault(f"{whose} takes port {port['hostPort']} of the host", "Remove hostPort.")
    hooks = container.get("lifecycle") or {}
    handlers = [container.get(f"{name}Probe") for name in ("liveness", "readiness", "startup")]
    for handler in [*handlers, hooks.get("postStart"), hooks.get("preStop")]:
        for act in ("httpGet", "tcpSocket"):
            if ((handler or {}).get(act) or {}).get("host"):
                yield PodFault(f"{whose} is probed at another host", f"Remove host from {act}.")
