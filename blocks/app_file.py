"""Reading `app.yaml`: text of strangers, with the line of every problem.

Promises YAML's plain part only, with scalars as in YAML 1.2's core schema: `on`, `yes`, `22:22` and
dates are text. Refuses what makes a small file large or a safe file unsafe: anchors, aliases, tags,
merge keys, several documents, more than 16 KiB, nesting deeper than 12. Names every duplicate key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from domain.onboarding.app_problems import AppProblem, InvalidAppFile, Location
from domain.onboarding.app_reading import examine
from domain.onboarding.app_spec import AppSpec

SIZE_AT_MOST = 16 * 1024
DEPTH_AT_MOST = 12
_ODD_LINE_BREAK = re.compile(r"\r(?!\n)|[\x85\u2028\u2029]")
"""YAML would count more lines than the author sees."""

_WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]{1,18}|[0-9]{1,18}\.[0-9]{0,18})([eE][-+]?[0-9]{1,3})?")


@dataclass
class _Reading:
    """What was read so far: the problems, and the line of each place."""

    problems: list[AppProblem] = field(default_factory=list)
    lines: dict[Location, int] = field(default_factory=dict)
    dropped: list[Location] = field(default_factory=list)
    """Places whose value was left out, so that its absence is no second problem."""

    def complain(self, location: Location, text: str, line: int) -> None:
        self.problems.append(AppProblem(location, text, line))


def read_app_file(text: str, *, repository: str = "", source: str = "app.yaml") -> AppSpec:
    """Return the application that a file describes.

    `repository` is the path of the project that the file lies in: it is filled in where the file
    does not give one.

    Raises:
        InvalidAppFile: with every problem and its line.
    """
    reading = _Reading()
    data = _document(text, reading, source)
    if isinstance(data, dict) and repository:
        _fill_repository(data, repository, reading)
    app, found = examine(data)
    for problem in found:
        if not any(problem.location[: len(place)] == place for place in reading.dropped):
            reading.problems.append(problem.at_line(_line_of(problem.location, reading.lines)))
    if reading.problems or app is None:
        raise InvalidAppFile(source, reading.problems)
    return app


def _fill_repository(data: dict[str, Any], repository: str, reading: _Reading) -> None:
    given = data.setdefault("repository", repository)
    if isinstance(given, str) and given.strip() != repository:
        text = f"{given[:100]!r} is not this project. Write {repository}, or remove the line"
        reading.complain(("repository",), text, reading.lines.get(("repository",), 1))


def _line_of(location: Location, lines: Mapping[Location, int]) -> int:
    """Return the line of a place, or of the nearest group above it that is in the file."""
    for length in range(len(location), 0, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return lines.get((), 1)


# --- YAML ------------------------------------------------------------------------------------


def _document(text: str, reading: _Reading, source: str) -> Any:
    """Return the document's content; raise where nothing more can be read after a problem."""
    size = len(text.encode(errors="replace"))
    if size > SIZE_AT_MOST:
        problem = AppProblem((), f"has {size} bytes. Use at most {SIZE_AT_MOST}", 1)
        raise InvalidAppFile(source, [problem])
    odd = _ODD_LINE_BREAK.search(text)
    if odd is not None:
        line = text.count("\n", 0, odd.start()) + 1
        said = "holds a line break that editors do not count. End lines with a line feed"
        raise InvalidAppFile(source, [AppProblem((), said, line)])
    try:
        refusal = _refusal(text)
        node = None if refusal else yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InvalidAppFile(source, [_not_yaml(error, text)]) from None
    if refusal:
        raise InvalidAppFile(source, [refusal])
    if node is None:
        problem = AppProblem((), "is empty. Begin with name: and the application's name", 1)
        raise InvalidAppFile(source, [problem])
    reading.lines[()] = node.start_mark.line + 1
    return _value(node, (), reading)


def _refusal(text: str) -> AppProblem | None:
    """Return why a document is not looked at any further, without building any of it."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return AppProblem((), "uses an anchor or an alias. Write the value out", line)
        if getattr(event, "tag", None):
            return AppProblem((), "has a YAML tag. Remove the word that begins with !", line)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                return AppProblem((), "is followed by a second one. Keep one", line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_AT_MOST:
                text = f"is nested deeper than {DEPTH_AT_MOST} levels. Make it flatter"
                return AppProblem((), text, line)
        depth -= isinstance(event, yaml.CollectionEndEvent)
    return None


def _not_yaml(error: yaml.YAMLError, text: str) -> AppProblem:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        said = str(getattr(error, "problem", "") or "it cannot be read")
        begin = getattr(error, "context_mark", None)
        if begin is not None and begin.line != mark.line:
            said += f" in what begins in line {begin.line + 1}"
        return AppProblem((), f"is not YAML: {said}. Correct it", mark.line + 1)
    position = getattr(error, "position", 0)
    line = text.count("\n", 0, position if isinstance(position, int) else 0) + 1
    return AppProblem((), "holds a character that YAML does not allow. Remove it", line)


def _value(node: yaml.Node, location: Location, reading: _Reading) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, location, reading)
    if isinstance(node, yaml.SequenceNode):
        found = []
        for number, entry in enumerate(node.value):
            reading.lines[(*location, number)] = entry.start_mark.line + 1
            found.append(_value(entry, (*location, number), reading))
        return found
    return _scalar(node, location, reading)


def _mapping(node: yaml.MappingNode, location: Location, reading: _Reading) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            reading.complain(location, "has a key that is a group. Write a word before :", line)
            continue
        key = str(key_node.value)
        place = (*location, key)
        if key == "<<" and key_node.style is None:
            reading.complain(place, "merges another group. Write its fields out", line)
        elif key in found:
            first = reading.lines[place]
            reading.complain(place, f"is given twice, first in line {first}. Keep one", line)
        else:
            reading.lines[place] = line
            found[key] = _value(value_node, place, reading)
    return found


def _scalar(node: yaml.Node, location: Location, reading: _Reading) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) is not None:
        return text
    if text in _WORDS:
        value = _WORDS[text]
        if value is None and location:
            reading.dropped.append(location)
            reading.complain(
                location,
                "is empty. Give it a value ({} where the defaults are meant), or remove it",
                reading.lines.get(location, node.start_mark.line + 1),
            )
        return value
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text
