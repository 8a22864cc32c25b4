"""What the lab builds from pinned Go modules.

Why: the lab runs the programs that a site runs, and a checkout must get the same ones on every
machine. The versions are pinned in `go/<tool>/go.mod` and `go.sum`; here stands only which packages
are built of them and how the results are named.
"""

from dataclasses import dataclass, field
from pathlib import Path

from lab.toolchain.paths import PROVIDER_VERSION

MODULES_DIR = Path(__file__).parent / "go"


@dataclass(frozen=True)
class Recipe:
    """One module of ours and the programs that are built of it."""

    name: str
    programs: dict[str, str]
    """Go package -> name of the program."""
    ldflags: str = ""
    built_names: dict[str, str] = field(default_factory=dict)
    """Go package -> the name that `go build` gives, where it is not the wanted one."""
    is_for_tests: bool = False
    """True when the lab itself does not run it."""

    @property
    def module_dir(self) -> Path:
        return MODULES_DIR / self.name


PROVIDER_PROGRAM = f"terraform-provider-proxmox_v{PROVIDER_VERSION}"
_PROVIDER_PACKAGE = "github.com/bpg/terraform-provider-proxmox"
_ETCD_PACKAGE = "go.etcd.io/etcd/server/v3"
_KUBERNETES_VERSION = "v1.36.3"
_ARGOCD_PACKAGE = "github.com/argoproj/argo-cd/v3/cmd"
_ARGOCD_VERSION = "3.6.1"
_KUSTOMIZE_PACKAGE = "sigs.k8s.io/kustomize/kustomize/v5"

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="provider",
        programs={_PROVIDER_PACKAGE: PROVIDER_PROGRAM},
        built_names={_PROVIDER_PACKAGE: "terraform-provider-proxmox"},
    ),
    Recipe(
        # 3.6.0 panics on a restart after a promoted member was removed; 3.6.16 does not.
        name="etcd",
        programs={_ETCD_PACKAGE: "etcd", "go.etcd.io/etcd/etcdctl/v3": "etcdctl"},
        built_names={_ETCD_PACKAGE: "server"},
    ),
    Recipe(
        name="kubernetes",
        programs={
            f"k8s.io/kubernetes/cmd/{program}": program
            for program in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
        },
        ldflags=(
            f"-X k8s.io/component-base/version.gitVersion={_KUBERNETES_VERSION}"
            f" -X k8s.io/client-go/pkg/version.gitVersion={_KUBERNETES_VERSION}"
        ),
    ),
    Recipe(
        # One program that is API server, repository server or controller by the name it is called.
        name="argocd",
        programs={_ARGOCD_PACKAGE: "argocd"},
        ldflags=f"-X github.com/argoproj/argo-cd/v3/common.version={_ARGOCD_VERSION}",
        built_names={_ARGOCD_PACKAGE: "cmd"},
    ),
    Recipe(name="kwok", programs={"sigs.k8s.io/kwok/cmd/kwok": "kwok"}),
    # What Argo CD's repository server calls.
    Recipe(name="kustomize", programs={_KUSTOMIZE_PACKAGE: "kustomize"}),
    Recipe(
        # Without `dev=no` the build calls itself a development version.
        name="tofu",
        programs={"github.com/opentofu/opentofu/cmd/tofu": "tofu"},
        ldflags="-X github.com/opentofu/opentofu/version.dev=no",
    ),
    Recipe(
        # An object store with IAM, for access keys that are rotated. Its releases have no tag that
        # a Go module could have: pinned by commit.
        name="seaweedfs",
        programs={"github.com/seaweedfs/seaweedfs/weed": "weed"},
        is_for_tests=True,
    ),
)
