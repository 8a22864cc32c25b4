"""The API as a second, independent client sees it: @gitbeaker/rest on Node.js."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from lab.bare_gitlab import BareGitLab
from lab.toolchain.paths import cache_dir

HERE = Path(__file__).parent / "gitbeaker"


@pytest.fixture(scope="session")
def gitbeaker() -> Path:
    """Where the client is installed: once for each lock file, in the cache of pinned programs."""
    npm = shutil.which("npm")
    assert npm, "npm is missing: lab/setup.sh --tests installs it"
    lock = (HERE / "package-lock.json").read_bytes()
    directory = cache_dir() / "npm" / f"gitbeaker-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not (directory / "node_modules").exists():
        half_made = directory.with_name(f"{directory.name}.{os.getpid()}")
        half_made.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, half_made / name)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run([npm, "ci", *options], cwd=half_made, check=True, timeout=180)
        shutil.rmtree(directory, ignore_errors=True)
        half_made.rename(directory)
    return directory


def test_gitbeaker_walks_through_the_api(
    server: BareGitLab, gitbeaker: Path, receiver: Any, tmp_path: Path
) -> None:
    token = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    # An ES module finds its packages beside itself, not by a variable.
    (tmp_path / "node_modules").symlink_to(gitbeaker / "node_modules")
    script = shutil.copy(HERE / "walk.mjs", tmp_path)
    done = subprocess.run(
        ["node", str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "NODE_EXTRA_CA_CERTS": server.ca_file,
            "GITLAB_URL": server.url,
            "GITLAB_TOKEN": server.tokens["infraflows"],
            "HOOK_URL": receiver.url,
            "SIGNING_TOKEN": token,
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    first = receiver.wait(1)[0]
    assert Webhook(token).verify(first.body, first.headers)["after"] == seen.pop("commit")
    variable = seen.pop("variable")
    assert (variable["value"], variable["masked"], variable["environment_scope"]) == (
        "very-secret-value",
        True,
        "production",
    )
    assert set(seen.pop("tree")) == {"README.md", "deep", "deep/er", "deep/er/app.yaml"}
    assert seen == {
        "user": "infraflows",
        "byPath": True,
        "missing": 404,
        "hook": {"signed": True, "status": "executable"},
        "file": "name: shop\n",
        "notes": ["Looks good"],
        "diff": ["README.md"],
        "merged": "merged",
        "twice": 400,
        "protected": ["main", "release/*"],
        "tag": True,
        "deployToken": True,
        "comments": 1,
        "statuses": ["success"],
        "pages": 25,
        "moved": True,
        "gone": 404,
    }
