"""Runs the simulated Harbor: `python -m lab.harbor --state DIR --administrator FILE ...`.

Promises: the state survives a restart or SIGKILL of this process. The administrator's password is
read from a file, because an argv is public.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import uvicorn

from lab.harbor.harbor import Harbor, Settings
from lab.harbor.server import application


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab.harbor", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="where the state is kept")
    parser.add_argument(
        "--administrator", type=Path, required=True, help='JSON file: {"username", "password"}'
    )
    parser.add_argument("--registry", required=True, help="URL of the registry behind")
    parser.add_argument("--external-url", required=True, help="URL that clients use")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cert", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    return parser.parse_args()


def main() -> int:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    given = _arguments()
    given.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = Settings(
        state_directory=given.state,
        administrator=json.loads(given.administrator.read_text(encoding="utf-8")),
        registry_url=given.registry,
        external_url=given.external_url,
    )
    uvicorn.run(
        application(Harbor(settings)),
        host=given.address,
        port=given.port,
        ssl_certfile=str(given.cert),
        ssl_keyfile=str(given.key),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
