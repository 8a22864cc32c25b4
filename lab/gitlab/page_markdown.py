"""GitLab's Markdown as far as comments need it: tables, task lists, folds, addresses as links.

Refuses HTML in the text but for the tags of a fold, and addresses that are not of the web.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

_ADDRESS = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)]")
_HIDDEN = re.compile(r"<!--.*?-->", re.DOTALL)
_FOLD_TAGS = ("details", "/details", "summary", "/summary")
_BOXES = {"[ ] ": "\u2610 ", "[x] ": "\u2611 ", "[X] ": "\u2611 "}


def markdown() -> MarkdownIt:
    """A renderer."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    renderer.core.ruler.after("inline", "addresses_and_boxes", _addresses_and_boxes)
    return renderer


def with_folds(renderer: MarkdownIt, text: str) -> str:
    """Render a text as HTML: its HTML comments are hidden, its folds fold."""
    rendered = str(renderer.render(_HIDDEN.sub("", text)))
    for tag in _FOLD_TAGS:
        rendered = rendered.replace(f"&lt;{tag}&gt;", f"<{tag}>")
    return rendered


def _addresses_and_boxes(state: StateCore) -> None:
    for position, token in enumerate(state.tokens):
        if token.type != "inline" or not token.children:
            continue
        is_item = position > 1 and state.tokens[position - 2].type == "list_item_open"
        first = token.children[0]
        if is_item and first.type == "text" and first.content[:4] in _BOXES:
            first.content = _BOXES[first.content[:4]] + first.content[4:]
        token.children = _linked(token.children)


def _linked(children: list[Token]) -> list[Token]:
    found: list[Token] = []
    depth = 0
    for child in children:
        depth += {"link_open": 1, "link_close": -1}.get(child.type, 0)
        if child.type != "text" or depth:
            found.append(child)
            continue
        end = 0
        for match in _ADDRESS.finditer(child.content):
            found += [_text(child.content[end : match.start()]), *_link(match[0])]
            end = match.end()
        found.append(_text(child.content[end:]))
    return found


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _link(address: str) -> list[Token]:
    return [
        Token("link_open", "a", 1, attrs={"href": address}),
        _text(address),
        Token("link_close", "a", -1),
    ]
