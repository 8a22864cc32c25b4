"""The environment of a command that a person or a test runs inside the lab's network.

The command is the caller's own, so it keeps the caller's variables; the lab's are added, and what
would lead out of the lab (proxies, foreign CA bundles) is replaced. The worker never gets this.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from lab.layout import GATEWAY, Layout
from lab.toolchain.paths import bin_dir

_LEADS_OUT = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def shell_environment(layout: Layout, caller: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in caller.items() if name.lower() not in _LEADS_OUT}
    path = [str(Path(sys.executable).parent), str(bin_dir()), caller.get("PATH", "/usr/bin:/bin")]
    return {
        **kept,
        **layout.environment(),
        "PATH": ":".join(path),
        "BAO_ADDR": layout.openbao_url,
        "BAO_CACERT": str(layout.ca_file),
        "VAULT_ADDR": layout.openbao_url,
        "VAULT_CACERT": str(layout.ca_file),
        "PREFECT_API_URL": layout.prefect_api_url,
        "KUBECONFIG": caller.get("KUBECONFIG") or str(layout.home / "kubeconfig"),
        "INFRAFLOWS_SITE": str(layout.site_file),
        "INFRAFLOWS_LAB_CA": str(layout.ca_file),
        "INFRAFLOWS_LAB_GATEWAY": GATEWAY,
    }
