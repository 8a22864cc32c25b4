"""`python -m lab.toolchain build [tools|image|rke2|all] [--tests]`: builds what is missing."""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from lab.toolchain.gobuild import BuildError, build_tools
from lab.toolchain.image import build_image
from lab.toolchain.paths import NotBuiltError
from lab.toolchain.rke2 import build_rke2


def say(line: str) -> None:
    """One line of progress."""
    print(f"           {line}", flush=True)


def build(wanted: str, *, for_tests: bool = False) -> list[str]:
    """Build what is wanted; the failures, all of them."""
    first: list[Callable[[], object]] = []
    if wanted in {"tools", "all"}:
        first.append(lambda: build_tools(say, for_tests=for_tests))
    if wanted in {"image", "all"}:
        # The image waits for the network and the disk, the tools for the processor: side by side.
        first.append(lambda: build_image(say))
    failures = _failures(first)
    if not failures and wanted in {"rke2", "all"}:
        failures = _failures([lambda: build_rke2(say)])
    return failures


def _failures(jobs: list[Callable[[], object]]) -> list[str]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        started = [pool.submit(job) for job in jobs]
    errors = [error for job in started if (error := job.exception()) is not None]
    for error in errors:
        if not isinstance(error, BuildError | NotBuiltError | OSError):
            raise error
    return [str(error) for error in errors]


def main(arguments: list[str] | None = None) -> int:
    """The command's exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.toolchain", description=__doc__)
    parser.add_argument("command", choices=["build"])
    parser.add_argument("what", nargs="?", default="all", choices=["tools", "image", "rke2", "all"])
    parser.add_argument("--tests", action="store_true", help="also what only tests run")
    given = parser.parse_args(arguments)
    failures = build(given.what, for_tests=given.tests)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
