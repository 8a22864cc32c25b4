from __future__ import annotations

import pytest

from domain.errors import InvalidSpec
from domain.repository_layout import checked_path, inventory_path, platform_directory
from domain.specs import EXAMPLE, parse_spec
from domain.zone_names import possible_names, wanted_addresses


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a/.git/config", ".GIT/hooks", "a\\b", "a\nb"]
)
def test_a_path_out_of_the_repository_is_refused(path: str) -> None:
    with pytest.raises(InvalidSpec, match="leaves the repository"):
        checked_path(path)


def test_everything_about_a_cluster_is_in_its_directory() -> None:
    assert checked_path(inventory_path("demo")) == "clusters/demo/inventory.yaml"
    assert checked_path(platform_directory("demo")) == "clusters/demo/platform"


def test_every_name_that_is_published_is_found_again_without_the_size() -> None:
    large = parse_spec(EXAMPLE)
    small = parse_spec(
        {
            **EXAMPLE,
            "control_plane": {**EXAMPLE["control_plane"], "count": 1},
            "workers": {"count": 0},
        }
    )

    assert wanted_addresses(large)["demo-api"] == "10.90.0.50"
    assert set(wanted_addresses(large)) <= set(possible_names(small))
    assert len(wanted_addresses(small)) == 2
