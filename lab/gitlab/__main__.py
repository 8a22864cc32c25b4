"""Runs the simulated GitLab: `python -m lab.gitlab --directory DIR --accounts FILE ...`.

Promises: state survives a restart or SIGKILL of this process; what was under way goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import uvicorn

from lab.gitlab.instance import GitLab, Settings
from lab.gitlab.server import application
from lab.gitlab.set_up import set_up


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab.gitlab", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="where the state is")
    parser.add_argument("--accounts", type=Path, help="JSON file of users, tokens and groups")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--url", help="under which it is reached; from address and port if empty")
    parser.add_argument("--cert", type=Path, help="plain HTTP without")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--ca-file", default="", help="CA of webhook receivers and the registry")
    parser.add_argument("--job-seconds", type=float, default=1.0)
    parser.add_argument("--delivery-timeout-seconds", type=float, default=10.0)
    parser.add_argument("--retry-seconds", type=float, default=15.0)
    parser.add_argument("--disable-seconds", type=float, default=60.0)
    return parser.parse_args()


def main() -> int:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    given = _arguments()
    given.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    scheme = "https" if given.cert else "http"
    gitlab = GitLab(
        Settings(
            directory=given.directory,
            url=(given.url or f"{scheme}://{given.address}:{given.port}").rstrip("/"),
            ca_file=given.ca_file,
            job_seconds=given.job_seconds,
            delivery_timeout_seconds=given.delivery_timeout_seconds,
            retry_seconds=given.retry_seconds,
            disable_seconds=given.disable_seconds,
        )
    )
    if given.accounts is not None:
        set_up(gitlab, json.loads(given.accounts.read_text(encoding="utf-8")))
    uvicorn.run(
        application(gitlab),
        host=given.address,
        port=given.port,
        ssl_certfile=str(given.cert) if given.cert else None,
        ssl_keyfile=str(given.key) if given.key else None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
