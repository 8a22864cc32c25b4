"""Builds the pinned Go modules, each once per content.

Why: `recipes.py` says what; here is how. Promises: a build is named by the hash of go.mod, go.sum,
the recipe and the Go version, so a change of any of them is a new build and everything else is a
look at the disk; `go.sum` is only read. Refuses: a Go older than 1.21, which cannot fetch the
toolchain that the modules ask for.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from lab.toolchain.content import content_hash, exclusive, link, place, staged
from lab.toolchain.paths import bin_dir, cache_dir, provider_dir
from lab.toolchain.recipes import PROVIDER_PROGRAM, RECIPES, Recipe

_ATTEMPTS = 3
_PARALLEL_BUILDS = 2
_NETWORK_SIGNS = ("dial tcp", "timeout", "connection", "unexpected EOF", "TLS", "502", "503", "504")

Say = Callable[[str], None]


class BuildError(RuntimeError):
    """A build failed; the text says which and what the compiler or packager said last."""


def find_go() -> Path:
    """The Go command: of `INFRAFLOWS_GO`, the PATH, the usual place, or our own from PyPI."""
    candidates = (
        os.environ.get("INFRAFLOWS_GO"),
        shutil.which("go"),
        "/usr/local/go/bin/go",
        str(cache_dir() / "go" / "bin" / "go"),
    )
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise BuildError(
        "Unable to build: there is no `go` command. Run lab/setup.sh, it installs one."
    )


def go_environment() -> dict[str, str]:
    """The environment of a build: the machine's, minus what would make builds differ."""
    env = {name: value for name, value in os.environ.items() if name not in {"GOFLAGS", "GOWORK"}}
    env |= {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    env |= {"GOTOOLCHAIN": "auto", "GOOS": "linux", "GOARCH": "amd64"}
    if "HOME" not in env:
        env.setdefault("GOPATH", str(cache_dir() / "gopath"))
        env.setdefault("GOCACHE", str(cache_dir() / "gobuild"))
    return env


def go_version(module_dir: Path) -> str:
    """The version of the toolchain that builds `module_dir`, after Go's own selection."""
    done = subprocess.run(
        [str(find_go()), "env", "GOVERSION"],
        cwd=module_dir,
        env=go_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"Unable to run Go in {module_dir}: {done.stderr.strip()[-400:]}")
    return done.stdout.strip()


def recipe_hash(recipe: Recipe, version: str) -> str:
    """Names the build of `recipe` by everything that goes into it."""
    apart = {"name", "is_for_tests"}
    described = {key: value for key, value in asdict(recipe).items() if key not in apart}
    return content_hash(
        (
            (recipe.module_dir / "go.mod").read_bytes(),
            (recipe.module_dir / "go.sum").read_bytes(),
            repr(sorted(described.items())),
            version,
        )
    )


def go_build(module_dir: Path, output: Path, packages: list[str], ldflags: str, what: str) -> None:
    """Run `go build`, again when the network is what failed."""
    flags = ["-mod=readonly", "-trimpath", "-p", str(max(os.cpu_count() or 1, 1))]
    command = [str(find_go()), "build", *flags, "-ldflags", f"-s -w {ldflags}".strip()]
    command += ["-o", f"{output}", *packages]
    for attempt in range(1, _ATTEMPTS + 1):
        done = subprocess.run(
            command,
            cwd=module_dir,
            env=go_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        said = "\n".join(x for x in done.stderr.splitlines() if "go: downloading" not in x)[-2000:]
        if attempt == _ATTEMPTS or not any(sign in said for sign in _NETWORK_SIGNS):
            raise BuildError(f"Unable to build {what}: go build ended with:\n{said}")
        time.sleep(5 * attempt)


def _built(folder: Path, recipe: Recipe) -> bool:
    return all(os.access(folder / program, os.X_OK) for program in recipe.programs.values())


def build_recipe(recipe: Recipe, say: Say) -> Path:
    """The folder with the programs of `recipe`, built now if it is not there."""
    digest = recipe_hash(recipe, go_version(recipe.module_dir))
    folder = cache_dir() / "builds" / f"{recipe.name}-{digest}"
    with exclusive(f"build-{recipe.name}"):
        if not _built(folder, recipe):
            started = time.monotonic()
            say(f"{recipe.name}: building {', '.join(recipe.programs.values())}")
            with staged(folder) as stage:
                packages = list(recipe.programs)
                go_build(recipe.module_dir, stage, packages, recipe.ldflags, recipe.name)
                for package, built in recipe.built_names.items():
                    (stage / built).rename(stage / recipe.programs[package])
            say(f"{recipe.name}: built in {time.monotonic() - started:.0f} s")
        for program in recipe.programs.values():
            if program == PROVIDER_PROGRAM:
                place(provider_dir() / program, folder / program)
            else:
                link(bin_dir() / program, folder / program)
    return folder


def build_tools(say: Say, *, for_tests: bool = False) -> None:
    """Build every recipe, two at a time; all failures are told at once."""
    wanted = [recipe for recipe in RECIPES if for_tests or not recipe.is_for_tests]
    with ThreadPoolExecutor(_PARALLEL_BUILDS) as pool:
        jobs = [pool.submit(build_recipe, recipe, say) for recipe in wanted]
    failures = [str(error) for job in jobs if (error := job.exception()) is not None]
    if failures:
        raise BuildError("\n".join(failures))
