"""The page about rotation tells what the code does: its tables are the code's own.

After a class or a field has changed, `python tests/docs/test_rotate_secrets_page.py` writes them.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from blocks.rotation.registry import CLASSES, check_secrets, table
from domain.rotation.contract import SecretRef
from domain.rotation.policy import EXAMPLE, RotationPolicy, parse_policy
from domain.rotation.policy_fields import ClassPolicy, SecretRule, SystemPolicy, Window
from domain.spec_fields import SpecModel

PAGE = Path(__file__).parents[2] / "docs" / "rotate-secrets.md"
GROUPS: dict[str, type[SpecModel]] = {
    "the document": RotationPolicy,
    "each entry of `classes`": ClassPolicy,
    "each entry of `windows`": Window,
    "each entry of `systems`": SystemPolicy,
    "each entry of `secrets`": SecretRule,
}


def class_table() -> str:
    """Return the table of classes."""
    rows = table()
    needs = {
        each.kind: (
            "<br>".join([*(f"`{n}`" for n in each.parameters), *(f"`{n}`?" for n in each.optional)])
            + ("<br>a person's approval" if each.needs_approval else "")
        )
        for each in CLASSES
    }
    titles = [*rows[0], "needs"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [f"`{row['class']}`", *list(row.values())[1:], needs[row["class"]]]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def field_tables() -> str:
    """Return the policy's reference, group by group."""
    parts = []
    for title, model in GROUPS.items():
        lines = [f"**{title[0].upper()}{title[1:]}**", "", "| Field | Default | What it is |"]
        lines.append("|---|---|---|")
        for name, info in model.model_fields.items():
            default = "required" if info.is_required() else f"`{_shown(info)}`"
            lines.append(f"| `{info.alias or name}` | {default} | {info.description} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _shown(info: object) -> str:
    value = info.get_default(call_default_factory=True)  # type: ignore[attr-defined]
    if isinstance(value, list):
        return "[" + ", ".join(str(getattr(each, "value", each)) for each in value) + "]"
    return yaml.safe_dump(value).splitlines()[0]


def example() -> str:
    """Return the example policy as YAML."""
    return f"```yaml\n{yaml.safe_dump(EXAMPLE, sort_keys=False)}```"


WRITTEN = {"classes": class_table, "policy": field_tables, "example": example}


def part(text: str, name: str) -> str:
    found = _marked(name).search(text)
    assert found, f"the page has no part {name}"
    return found.group(2).strip("\n")


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: begin -->\n)(.*?)(<!-- {name}: end -->)", re.DOTALL)


def test_the_table_of_classes_is_the_registrys() -> None:
    assert part(PAGE.read_text(), "classes") == class_table()


def test_the_reference_of_the_policy_is_the_models() -> None:
    assert part(PAGE.read_text(), "policy") == field_tables()


def test_the_example_is_a_right_policy() -> None:
    shown = part(PAGE.read_text(), "example")
    data = yaml.safe_load(shown.removeprefix("```yaml\n").removesuffix("```"))
    assert data == EXAMPLE
    policy = parse_policy(data, [each.kind for each in CLASSES])
    check_secrets(
        SecretRef(rule.path, rule.kind, rule.environment, rule.parameters)
        for rule in policy.secrets
    )


def test_links_and_pictures_of_the_page_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE.read_text())
    assert "pictures/rotation.svg" in targets
    assert [t for t in targets if not (PAGE.parent / t).exists()] == []


if __name__ == "__main__":
    page = PAGE.read_text()
    for written, make in WRITTEN.items():
        content = f"{make()}\n"
        page = _marked(written).sub(lambda found, c=content: found[1] + c + found[3], page)
    PAGE.write_text(page)
