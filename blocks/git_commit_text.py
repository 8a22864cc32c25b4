"""What one commit holds, searched for values that must not be there.

Promises to tell paths of what was found and never the text around it. Refuses to search for values
so short that they would be found by chance.
"""

from __future__ import annotations

from collections.abc import Mapping

from blocks.git_repository import GitSession

SHORTEST = 8
"""Characters: a shorter part, as a port or a user's name, says nothing."""

PUBLIC_PARTS = frozenset(
    {
        "accessor",
        "algorithm",
        "database",
        "host",
        "key_name",
        "role_id",
        "sslmode",
        "sslrootcert",
        "token_id",
        "url",
        "username",
    }
)
"""Parts of a value that stand in clear elsewhere and leak nothing."""


def found_in(
    session: GitSession, revision: str, values: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the paths of which a secret part stands in any file as it was at `revision`.

    A commit is searched as a whole, not by what it changed: who has it has all of its files.
    """
    text = "\n".join(session.whole_tree(revision).values())
    return sorted(path for path, parts in values.items() if _stands_in(parts, text))


def _stands_in(parts: Mapping[str, str], text: str) -> bool:
    return any(
        name not in PUBLIC_PARTS and len(part) >= SHORTEST and part in text
        for name, part in parts.items()
    )
