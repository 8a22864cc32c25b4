"""What the domain says that a token can read is what a real OpenBao says.

The rules of precedence are many and a leak is no time to find one misread: random policies are
written to a real server, and both are asked about the same paths.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.rotation.access_policies import can_read, parse_access_policy
from lab.bare_services import BareOpenBao, bare_openbao
from lab.toolchain.paths import NotBuiltError, tool

ROUNDS = 150
NAMES = ["a", "b", "ab"]
PARTS = [*NAMES, "+"]
PATHS = [f"kv/data/{one}/{two}" for one in NAMES for two in NAMES] + [
    "kv/data/a",
    "kv/data/a/b/a",
    "kv/data/ab/a/b",
]


@pytest.fixture(scope="module")
def bao() -> Iterator[BareOpenBao]:
    try:
        tool("bao")
    except NotBuiltError:
        pytest.skip("OpenBao is not there")
    directory = Path(tempfile.mkdtemp(prefix="openbao-precedence-"))
    try:
        with bare_openbao(directory) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def policy_text(dice: random.Random) -> str:
    blocks = []
    for _ in range(dice.randrange(1, 5)):
        parts = [dice.choice(PARTS) for _ in range(dice.randrange(1, 4))]
        # `+*` is refused by OpenBao itself.
        glob = dice.choice(["", "", "/*"] + ["*"] * (parts[-1] != "+"))
        rights = dice.choice(['"read"', '"read", "list"', '"deny"', '"update"', '"list", "read"'])
        blocks.append(f'path "kv/data/{"/".join(parts)}{glob}" {{ capabilities = [{rights}] }}')
    # A pattern that stands twice in one policy is merged by OpenBao only across policies.
    return "\n".join({block.split('"')[1]: block for block in blocks}.values())


def test_random_policies_read_the_same_paths_as_on_a_real_server(bao: BareOpenBao) -> None:
    client = bao.client(bao.root_token)
    dice = random.Random(4)  # noqa: S311 - reproducible policies, no secret
    allowed = 0
    for number in range(ROUNDS):
        texts = {f"p{n}": policy_text(dice) for n in range(dice.randrange(1, 4))}
        for name, text in texts.items():
            client.sys.create_or_update_policy(name, text)
        made = client.auth.token.create(policies=list(texts), no_default_policy=True, ttl="5m")
        said = client.sys.get_capabilities(PATHS, token=made["auth"]["client_token"])
        rules = [
            rule
            for name in texts
            for rule in parse_access_policy(name, client.sys.read_policy(name)["data"]["rules"])
        ]
        for path in PATHS:
            is_readable = "read" in said[path]
            allowed += is_readable
            assert can_read(rules, path) is is_readable, (number, path, texts, said[path])
    assert 0.1 < allowed / (ROUNDS * len(PATHS)) < 0.9
