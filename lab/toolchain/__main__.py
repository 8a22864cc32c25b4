"""`python -m lab.toolchain build [tools|image|rke2|all]`: builds what is missing."""

import argparse
import sys

from lab.toolchain.gobuild import BuildError, build_tools
from lab.toolchain.image import build_image
from lab.toolchain.paths import NotBuiltError
from lab.toolchain.rke2 import build_rke2


def say(line: str) -> None:
    """One line of progress."""
    print(f"           {line}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.toolchain", description=__doc__)
    parser.add_argument("command", choices=["build"])
    parser.add_argument("what", nargs="?", default="all", choices=["tools", "image", "rke2", "all"])
    wanted = parser.parse_args(arguments).what
    try:
        if wanted in {"tools", "all"}:
            build_tools(say)
        if wanted in {"image", "all"}:
            build_image(say)
        if wanted in {"rke2", "all"}:
            build_rke2(say)
    except (BuildError, NotBuiltError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
