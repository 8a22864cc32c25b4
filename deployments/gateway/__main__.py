"""`python -m deployments.gateway --site FILE`: the same as `infraflows gateway`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from deployments.gateway.serve import serve
from domain.errors import LifecycleError


def main() -> int:
    """Serve; a problem of the set-up is told in a sentence."""
    parser = argparse.ArgumentParser(prog="python -m deployments.gateway", description=__doc__)
    given = os.environ.get("INFRAFLOWS_SITE")
    parser.add_argument("--site", type=Path, default=given, required=not given)
    try:
        serve(parser.parse_args().site)
    except LifecycleError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
