"""OpenTofu's working directories on the worker, which outlive a cluster and even a lab.

Exists because they are prepared once: a second cluster of the same name would be planned without
`tofu init`, which the bare tools are timed with. Only the benchmark's own clusters are touched.
"""

from __future__ import annotations

from benchmarks.sizes import ABSENT, SIZES, WARM_UP, cluster_name
from blocks.private_directory import wipe
from blocks.tofu import workspaces_root
from lab.layout import ENVIRONMENT


def bare_state(cluster: str) -> str:
    """Return the name of the state that the bare tools keep of a cluster."""
    return f"bare-{cluster}"


def forget_workspaces() -> None:
    """Remove the directories of the benchmark's clusters; what is absent is success."""
    # Each site's lab has directories of its own: those of earlier, killed benchmarks go too.
    for cluster in (ABSENT, WARM_UP, *map(cluster_name, SIZES)):
        for state in (f"{ENVIRONMENT}-{cluster}", bare_state(cluster)):
            for place in workspaces_root().glob(f"{state}-{'[0-9a-f]' * 8}"):
                wipe(place)
