"""Loading an environment's block documents, with an error that says what to run."""

from __future__ import annotations

from typing import TypeVar, cast

from prefect.blocks.core import Block

from domain.errors import NotFound

Kind = TypeVar("Kind", bound=Block)


def document(kind: type[Kind], environment: str) -> Kind:
    """Return the block of a system in an environment: its document is named after it.

    Raises:
        NotFound: the set-up has not been run for this environment.
    """
    try:
        return cast(Kind, kind.load(environment))
    except ValueError as error:
        name = kind.get_block_type_slug()
        raise NotFound(
            f"Unable to load the block {name}/{environment}: there is no such document. "
            "Run: infraflows setup --site <file>."
        ) from error
