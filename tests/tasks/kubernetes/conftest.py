from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.bare_control_plane import BareControlPlane, bare_control_plane
from lab.toolchain.paths import NotBuiltError, tool


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareControlPlane]:
    """A real etcd, kube-apiserver, controllers, scheduler and kwok, for all of these tests."""
    try:
        tool("kube-apiserver")
    except NotBuiltError as error:
        pytest.skip(str(error))
    with bare_control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found
