"""Users, tokens and groups that are there from the start, as a site's administrator makes them.

Promises: run again, it changes nothing; a token of the file that was replaced no longer works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_projects as projects
from lab.gitlab.instance import GitLab


def set_up(gitlab: GitLab, accounts: Mapping[str, Any]) -> None:
    """`{"users": {name: {"token", "name"?, "is_admin"?}}, "groups": {path: {user: level}}}`."""
    for username, details in accounts.get("users", {}).items():
        kept = {key: details[key] for key in ("name", "email", "is_admin") if key in details}
        user = access.define_user(gitlab, username, **kept)
        if "token" in details:
            access.define_token(gitlab, user, details["token"])
    for path, members in accounts.get("groups", {}).items():
        group = projects.find_group(gitlab, path)
        if group is None:
            owner = next(user for user in gitlab.tables.users if user["is_admin"])
            group = projects.create_group(gitlab, owner, {"name": path.capitalize(), "path": path})
        for username, level in members.items():
            member = gitlab.tables.users.first(username=username)
            if member is not None:
                projects.add_member(gitlab, "group", group["id"], member, level)
