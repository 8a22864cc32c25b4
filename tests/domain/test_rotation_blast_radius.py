"""A leak is followed to its end: what can be read, who read it, what is rotated first."""

from __future__ import annotations

import pytest

from domain.errors import InvalidSpec, NotFound
from domain.rotation.access_policies import PathRule, can_read, parse_access_policy
from domain.rotation.blast_radius import (
    AccessFacts,
    BlastRadius,
    Edge,
    Holder,
    Leak,
    LeakKind,
    Reach,
    blast_radius,
)
from domain.rotation.consumers import AuditRead, Consumer
from domain.rotation.policy import RotationPolicy, parse_policy

HCL = """
# The deployment's rights
path "kv/data/apps/*" {
  capabilities = ["read", "list"]   // values
  allowed_parameters = { "cas" = ["0"], "other" = [] }
}
path "kv/data/apps/secret/*" { capabilities = ["deny"] }
/* old
   form */
path "kv/data/old" { policy = "write" }
path "kv/metadata/*" { capabilities = ["list"] }
"""


def test_a_policy_in_hcl_is_read_with_notes_nested_groups_and_the_old_form() -> None:
    rules = parse_access_policy("deploy", HCL)
    assert [rule.pattern for rule in rules] == [
        "kv/data/apps/*",
        "kv/data/apps/secret/*",
        "kv/data/old",
        "kv/metadata/*",
    ]
    assert [path for path in ("apps/a", "apps/secret/a", "old", "x") if reads(rules, path)] == [
        "apps/a",
        "old",
    ]


def reads(rules: tuple[PathRule, ...], path: str) -> bool:
    return can_read(rules, f"kv/data/{path}")


def test_a_policy_in_json_and_the_root_policy_are_read() -> None:
    json = '{"path": {"kv/data/a": {"capabilities": ["read"]}}}'
    assert reads(parse_access_policy("j", json), "a")
    assert reads(parse_access_policy("root", ""), "anything/at/all")
    assert parse_access_policy("empty", "") == ()


@pytest.mark.parametrize(
    "text",
    ['path "a" { capabilities = ["read"]', "pfad", 'path "a" { policy = "all" }', "{", "path ?"],
)
def test_a_policy_that_cannot_be_read_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidSpec, match="Unable to use the OpenBao policy broken"):
        parse_access_policy("broken", text)


def rule(pattern: str, *capabilities: str) -> PathRule:
    return PathRule(pattern, frozenset(capabilities or ("read",)))


DENY = "deny"
PRECEDENCE = [
    ("an exact path wins over a glob", [rule("a/*"), rule("a/b", DENY)], False),
    ("a longer glob wins", [rule("a/*", DENY), rule("a/b*")], True),
    ("an earlier wildcard loses", [rule("+/b", DENY), rule("a/+")], True),
    ("a glob loses against a plus at the same place", [rule("a/*", DENY), rule("a/+")], True),
    ("deny wins within one path", [rule("a/b"), rule("a/b", DENY)], False),
    ("rights of one path add up", [rule("a/b", "list"), rule("a/b")], True),
    ("a plus is one name", [rule("+")], False),
    ("update does not read", [rule("a/b", "update")], False),
    ("a template may be anyone", [rule("a/{{identity.entity.name}}")], True),
    ("a denying template may be someone else", [rule("a/*"), rule("a/{{x}}", DENY)], True),
]


@pytest.mark.parametrize(
    ("name", "rules", "is_readable"), PRECEDENCE, ids=[c[0] for c in PRECEDENCE]
)
def test_rules_have_the_precedence_of_openbao(
    name: str, rules: list[PathRule], is_readable: bool
) -> None:
    assert can_read(rules, "a/b") is is_readable, name
    assert can_read(rules[::-1], "a/b") is is_readable, name


POLICY: RotationPolicy = parse_policy(
    {
        "environments": ["test", "production"],
        "classes": {
            "openbao-approle": {"max_age_days": 30},
            "kubernetes-secret": {"max_age_days": 30},
            "redis-acl-user": {"max_age_days": 30, "revoke_first": True},
        },
        "secrets": [
            {"path": "ci/*", "class": "openbao-approle", "environment": "production"},
            {"path": "test/*", "class": "kubernetes-secret", "environment": "test"},
            {"path": "apps/*/cache", "class": "redis-acl-user", "environment": "test"},
            {"path": "apps/**", "class": "kubernetes-secret", "environment": "production"},
        ],
    },
    ["openbao-approle", "kubernetes-secret", "redis-acl-user"],
)
WEB = Consumer("apps/shop/cache", "Deployment", "shop/web", "env")
KEY = Consumer("test/tls", "file", "/etc/tls.key", "written by Ansible", host="web-1")
FACTS = AccessFacts(
    paths=("apps/shop/cache", "apps/shop/mail", "ci/deploy", "ci/next", "legacy/x", "test/tls"),
    mount="kv",
    policies={
        "deploy": (rule("kv/data/apps/*"), rule("kv/data/ci/next")),
        "next": (rule("kv/data/legacy/*"), rule("kv/data/ci/*")),
    },
    holders=(
        Holder("acc-1", "approle-ci", ("deploy",), ("10.0.0.9",)),
        Holder("acc-2", "someone", ()),
    ),
    opens={"ci/deploy": ("deploy",), "ci/next": ("next",)},
    reads=(AuditRead("test/tls", "2026-03-04T02:00:00Z", "approle-ci", "hmac:1", "10.0.0.9"),),
    consumers={"apps/shop/cache": (WEB,), "test/tls": (KEY,)},
)


def reached(kind: LeakKind, value: str, **more: str) -> BlastRadius:
    return blast_radius(Leak(kind, value, **more), FACTS, POLICY)  # type: ignore[arg-type]


def paths(found: BlastRadius) -> list[str]:
    return [hit.path for hit in found.hits]


def test_a_path_that_opens_nothing_reaches_itself() -> None:
    found = reached(LeakKind.PATH, "kv/data/apps/shop/mail")
    assert paths(found) == ["apps/shop/mail"]
    assert found.hits[0].cells() == {
        "order": "1",
        "path": "apps/shop/mail",
        "class": "kubernetes-secret",
        "environment": "production",
        "mode": "overlap",
        "why": "leaked: named by the report",
        "consumers": "none known",
    }


def test_a_leaked_credential_is_followed_to_what_it_opens_and_on() -> None:
    found = reached(LeakKind.PATH, "ci/deploy")
    assert paths(found) == [
        "ci/deploy",
        "ci/next",
        "apps/shop/cache",
        "apps/shop/mail",
        "legacy/x",
    ]
    assert found.by_hand == ("legacy/x",)
    last = found.hits[-1].cells()
    assert last["class"] == "no rule: rotate by hand"
    assert last["why"] == "readable: by its credential through next"
    assert found.hits[2].cells()["consumers"] == "Deployment shop/web"


def test_what_opens_others_comes_first_then_what_is_revoked_first_then_the_gravest() -> None:
    found = reached(LeakKind.ACCESSOR, "acc-1", accessor_hash="hmac:1")
    assert paths(found) == [
        "ci/deploy",
        "ci/next",
        "apps/shop/cache",
        "test/tls",
        "apps/shop/mail",
        "legacy/x",
    ]
    assert [hit.opens_others for hit in found.hits] == [True, True, False, False, False, False]
    assert [hit.is_revoked_first for hit in found.hits][2] is True
    assert [hit.position for hit in found.hits] == [1, 2, 3, 4, 5, 6]
    assert found.accessors == ("acc-1",)


def test_an_accessor_reaches_what_it_can_read_and_what_it_read() -> None:
    found = reached(LeakKind.ACCESSOR, "acc-1", accessor_hash="hmac:1")
    by_name = {hit.path: hit for hit in found.hits}
    assert by_name["test/tls"].reasons[0].text == "read: by approle-ci"
    assert by_name["apps/shop/mail"].reasons[0].text == "readable: by approle-ci through deploy"


def test_a_token_that_reads_nothing_reaches_nothing_and_is_still_revoked() -> None:
    found = reached(LeakKind.ACCESSOR, "acc-2")
    assert (found.hits, found.accessors) == ((), ("acc-2",))


def test_a_host_reaches_its_files_its_reads_and_its_tokens() -> None:
    assert paths(reached(LeakKind.HOST, "web-1")) == ["test/tls"]
    found = reached(LeakKind.HOST, "10.0.0.9")
    assert "test/tls" in paths(found)
    assert "apps/shop/mail" in paths(found)
    assert found.accessors == ("acc-1",)


def test_a_prefix_goes_by_whole_names() -> None:
    assert paths(reached(LeakKind.PREFIX, "apps/shop/")) == ["apps/shop/cache", "apps/shop/mail"]
    with pytest.raises(NotFound):
        reached(LeakKind.PREFIX, "apps/sho")


def test_a_commit_reaches_what_was_found_in_it_known_or_not() -> None:
    leak = Leak(LeakKind.COMMIT, "0123456789abcdef", found_paths=("test/tls", "gone/y"))
    found = blast_radius(leak, FACTS, POLICY)
    assert paths(found) == ["test/tls", "gone/y"]
    assert found.hits[0].reasons[0].text == "leaked: found in commit 0123456789ab"


@pytest.mark.parametrize("kind", list(LeakKind))
def test_a_hint_that_names_nothing_known_is_refused_with_what_to_do(kind: LeakKind) -> None:
    with pytest.raises(
        NotFound, match=rf"Unable to tell what the {kind} nowhere/at/all reaches: .*\. "
    ):
        reached(kind, "nowhere/at/all")


def test_the_graph_leads_from_the_leak_over_credentials_to_consumers() -> None:
    edges = reached(LeakKind.PATH, "ci/deploy").edges
    assert set(edges) >= {
        Edge("path ci/deploy", "path ci/next", "readable"),
        Edge("path ci/next", "path legacy/x", "readable"),
        Edge("path apps/shop/cache", "Deployment shop/web", "used by"),
    }
    assert all(edge.source != edge.target for edge in edges)


def test_every_reason_is_kept_and_the_gravest_is_told_first() -> None:
    leak = Leak(LeakKind.COMMIT, "c0ffee", found_paths=("ci/deploy", "apps/shop/cache"))
    hit = {each.path: each for each in blast_radius(leak, FACTS, POLICY).hits}["apps/shop/cache"]
    assert [reason.reach for reason in hit.reasons] == [Reach.LEAKED, Reach.READABLE]
