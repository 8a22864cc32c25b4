"""The command `infraflows-lab`: one lab, brought up, looked at, broken and taken away.

It decides nothing: every command calls one function of the lab and prints what it returns.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab import breaks, lifecycle, network
from lab.layout import Layout
from lab.preflight import PreflightFailed
from lab.services import supervisor
from lab.services.catalogue import SERVICES, WATCHDOG, UnknownService, service, with_needs
from lab.services.openbao_setup import OpenBaoRefused
from lab.services.service import ServiceFailed
from lab.shell import shell_environment
from lab.status import LabStatus, status

app = typer.Typer(
    name="infraflows-lab",
    help="A lab of real guests behind the APIs of a Proxmox VE site.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
# A file or a pipe has no width: paths must not be cut there.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
_MARKS = {"started": "[green]✓[/]", "running": "[green]✓[/]", "stopped": "[green]✓[/]"}
_COLOURS = {"running": "green", "unhealthy": "yellow", "dead": "red", "stopped": "dim"}


class ProgressLines:
    """One line per service: with colour and a spinner in a terminal, plain elsewhere."""

    def __init__(self, action: str) -> None:
        self._status = console.status(action) if console.is_terminal else None

    def __enter__(self) -> Callable[[str, float, str], None]:
        if self._status is not None:
            self._status.start()
        return self._line

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def _line(self, name: str, seconds: float, what: str) -> None:
        if console.is_terminal:
            mark = _MARKS.get(what, "[red]✗[/]")
            console.print(f"{mark} {name:<12} {what:<8} [dim]{seconds:6.1f} s[/]")
        else:
            print(f"{name:<12} {what:<8} {seconds:6.1f} s", flush=True)


@app.command()
def up(
    only: Annotated[
        str, typer.Option(help="Only these services (comma-separated) and what they need.")
    ] = "",
) -> None:
    """Start everything; a lab that runs is left as it is."""
    layout = _layout()
    wanted = with_needs(only.split(",")) if only else SERVICES
    with ProgressLines("starting the lab") as line:
        outcome = lifecycle.up(layout, wanted, line)
    print(f"The lab is up after {outcome.seconds:.1f} s ({len(outcome.started)} started).")
    if any(s.name == "ui" for s in wanted):
        print(f"Prefect UI: {layout.ui_url}   Site: {layout.site_file}")


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Delete the lab's files, too.")] = False,
) -> None:
    """Stop everything, guests included, and leave nothing behind."""
    layout = _layout()
    _need_root()
    with ProgressLines("stopping the lab") as line:
        outcome = lifecycle.down(layout, line, purge=purge)
    print(f"The lab is down after {outcome.seconds:.1f} s; nothing of it is left running.")


@app.command("status")
def show_status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show every service: state, health, memory, log. Exit code 3 if not all is well."""
    _need_root()
    found = status(_layout())
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        _print_status(found)
    if not found.is_healthy:
        raise typer.Exit(3)


def _print_status(found: LabStatus) -> None:
    table = Table("service", "state", "pid", "MiB", "restarts", "log", box=None)
    for entry in found.services:
        colour = _COLOURS[entry.state]
        state = f"[{colour}]{entry.state}[/]" + (f" {escape(entry.reason)}" if entry.reason else "")
        table.add_row(
            entry.name,
            state,
            str(entry.pid or "-"),
            f"{entry.memory_mib:.0f}",
            str(entry.restarts),
            entry.log,
        )
    console.print(f"Lab {found.instance} in {found.home}", soft_wrap=True)
    console.print(table)
    print(f"network: {'up' if found.is_network_up else 'down'}")
    print(f"guests: {found.guest_count} running, {found.guest_memory_mib:.0f} MiB")


@app.command()
def logs(
    name: str,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines")] = 50,
) -> None:
    """Show a service's log (also `watchdog` and `openbao-audit`)."""
    layout = _layout()
    log = layout.log_file(name)
    if not log.exists():
        names = ", ".join(sorted(path.stem for path in layout.log_directory.glob("*.log")))
        _fail(f"Unable to show the log of {name!r}: {log} does not exist. There are: {names}.")
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(log)]
    os.execvp("tail", command)  # noqa: S606 - tail takes this process' place and its signals


@app.command("break")
def break_(
    name: Annotated[str, typer.Argument(help="The fault; without it, what there is.")] = "",
    parameters: Annotated[
        list[str] | None, typer.Argument(help="As name=value, or the VM's number.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take the fault (or all) away.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The faults that are set.")] = False,
) -> None:
    """List, set or clear faults."""
    _need_root()
    layout = _layout()
    if clear:
        cleared = breaks.clear(layout, name or None)
        print("\n".join(f"cleared {line}" for line in cleared) or "No fault was set.")
    elif as_json:
        print(json.dumps(breaks.current(layout), indent=2))
    elif name:
        breaks.set_fault(layout, name, _pairs(parameters or []))
        print(f"{name} is set. `infraflows-lab break --clear {name}` takes it away.")
    else:
        _print_breaks(layout)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        pairs.update({key: value} if equals else {"vmid": text})
    return pairs


def _print_breaks(layout: Layout) -> None:
    table = Table("fault", "what happens", "parameters", box=None)
    for name, meaning, parameters in breaks.kinds():
        table.add_row(name, meaning, parameters)
    console.print(table)
    print("A service is broken by `infraflows-lab kill SERVICE`.\n")
    found = breaks.current(layout)
    print("Set now:" if found else "No fault is set.")
    for fault in found:
        print(f"  {fault['name']} {json.dumps(fault['parameters'])}")


@app.command("create-project")
def create_project() -> None:
    """Create the demo team's GitLab group and its empty project, as the team would."""
    from lab.onboarding_demo import ensure_project

    _need_root()
    print(f"Project: {ensure_project(_layout())['web_url']}")


@app.command("push-app")
def push_app() -> None:
    """Push the demo application with its app.yaml to GitLab, as its team would."""
    from lab.onboarding_demo import demo_files, ensure_project, push

    _need_root()
    layout = _layout()
    ensure_project(layout)
    print(f"Pushed: {push(layout, demo_files(), 'feat: the shop')}")


@app.command()
def kill(
    name: str,
    comes_back: Annotated[
        bool, typer.Option("--comes-back", help="Let the watchdog bring it back.")
    ] = False,
) -> None:
    """Kill a service as a crash would; it stays dead until `start`, unless it may come back."""
    _need_root()
    victims = supervisor.kill(_layout(), service(name), comes_back=comes_back)
    print(f"Killed {name}: {len(victims)} processes.")


@app.command()
def start(name: str) -> None:
    """Start a service that was killed or died."""
    _need_root()
    layout = _layout()
    if not network.network_exists(layout.instance):
        _fail("Unable to start a service: the lab is not up. Run `infraflows-lab up`.")
    wanted = WATCHDOG if name == WATCHDOG.name else service(name)
    started = supervisor.start(layout, wanted)
    what = "runs already" if started.was_running else f"is healthy after {started.seconds:.1f} s"
    print(f"{name} {what}.")


@app.command("exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def execute(context: typer.Context) -> None:
    """Run a command inside the lab's network: `infraflows-lab exec -- kubectl get nodes`."""
    _need_root()
    layout = _layout()
    if not network.network_exists(layout.instance):
        _fail("Unable to run a command in the lab: it is not up. Run `infraflows-lab up`.")
    command = context.args or [os.environ.get("SHELL", "/bin/bash")]
    environment = shell_environment(layout, os.environ)
    argv = network.inside(layout.instance, command)
    sys.stdout.flush()
    os.execvpe(argv[0], argv, environment)  # noqa: S606 - the command takes our place


def _layout() -> Layout:
    try:
        return Layout.from_environment()
    except ValueError as error:
        _fail(str(error))


def _need_root() -> None:
    if os.geteuid() != 0:
        _fail("Unable to reach into the lab: not root. Run it as root (sudo).")


def _fail(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(1)


_EXPECTED_ERRORS = (
    PreflightFailed,
    lifecycle.LabFailed,
    ServiceFailed,
    UnknownService,
    OpenBaoRefused,
    network.NetworkError,
    breaks.BreakFailed,
    PermissionError,
    subprocess.CalledProcessError,
)


def main() -> None:
    """The entry point: errors that are expected are told in their own words, without a trace."""
    try:
        app()
    except _EXPECTED_ERRORS as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
