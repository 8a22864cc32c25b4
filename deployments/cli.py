"""The `infraflows` command: what an operator does without the UI."""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
import yaml
from rich.console import Console

from domain.errors import InvalidSpec, LifecycleError, NotFound, PermanentError
from domain.specs import ClusterSpec, parse_spec

if TYPE_CHECKING:
    from prefect.exceptions import PrefectHTTPStatusError

app = typer.Typer(
    name="infraflows",
    help="Life-cycle work of on-premises infrastructure, as Prefect flows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

SiteOption = Annotated[
    Path | None,
    typer.Option("--site", envvar="INFRAFLOWS_SITE", help="The site's YAML file."),
]
SpecOption = Annotated[
    Path | None, typer.Option("--spec", help="A cluster's spec; the deployment's own if absent.")
]

ParameterOption = Annotated[
    list[str] | None,
    typer.Option("--parameter", help="name=value, the value as JSON or plain text; repeatable."),
]


@contextmanager
def _explained() -> Iterator[None]:
    """Print the product's errors as sentences, without a traceback, and exit with 1."""
    try:
        yield
    except LifecycleError as error:
        errors.print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _read_spec(path: Path) -> ClusterSpec:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSpec(
            str(path), [f"the file: {error.strerror}. Name an existing file"]
        ) from error
    except yaml.YAMLError as error:
        raise InvalidSpec(str(path), [f"the file: is not YAML: {error}. Correct it"]) from error
    return parse_spec(data, str(path))


def _read_parameters(given: list[str]) -> dict[str, Any]:
    """Return `name=value` pairs; a value that is not JSON is the text that it is."""
    parameters: dict[str, Any] = {}
    for pair in given:
        name, separator, text = pair.partition("=")
        if not separator or not name.strip():
            problem = f"--parameter {pair!r}: is not name=value. Write it so"
            raise InvalidSpec("the parameters", [problem])
        try:
            parameters[name.strip()] = json.loads(text)
        except ValueError:
            parameters[name.strip()] = text
    return parameters


def _use_prefect(site_path: Path | None) -> str:
    """Point Prefect's client at the site's server; returns the UI's address."""
    if site_path is not None:
        from deployments.site_file import read_site_file

        ui_url = read_site_file(site_path).prefect.ui_url
        os.environ.setdefault("PREFECT_API_URL", f"{ui_url}/api")
        return ui_url
    api_url = os.environ.get("PREFECT_API_URL")
    if not api_url:
        raise PermanentError(
            "Unable to find the Prefect server: neither --site nor PREFECT_API_URL is given. "
            "Name the site's file: --site site.yaml."
        )
    return api_url.removesuffix("/api")


@app.command()
def setup(site: Annotated[Path, typer.Option("--site", envvar="INFRAFLOWS_SITE")]) -> None:
    """Write a site's blocks, policies, deployments and automations to Prefect."""
    with _explained():
        from deployments.site_file import read_site_file

        described = read_site_file(site)
        _use_prefect(site)
        from deployments.setup import set_up

        set_up(described, lambda line: console.print(f"  {line}", markup=False, soft_wrap=True))


@app.command("check-spec")
def check_spec(spec: Path) -> None:
    """Say everything that is wrong in a cluster's spec, or list its machines."""
    with _explained():
        from domain.machines import machines

        parsed = _read_spec(spec)
        for machine in machines(parsed):
            console.print(
                f"{machine.vm_id}  {machine.name}  {machine.hypervisor}  {machine.address}"
                f"  {machine.cores} cores  {machine.memory_mib} MiB  {machine.disk_gib} GiB"
            )


@app.command()
def run(
    deployment: Annotated[str, typer.Argument(help="As bootstrap-cluster/lab.")],
    spec: SpecOption = None,
    parameter: ParameterOption = None,
    site: SiteOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the run until it ends.")] = False,
) -> None:
    """Start a deployment through Prefect's API, as the UI does."""
    with _explained():
        parameters = _read_parameters(parameter or [])
        if spec is not None:
            parameters["spec"] = _read_spec(spec).model_dump(mode="json")
        ui_url = _use_prefect(site)
        run_id, cluster, environment = _start(deployment, parameters)
        console.print(f"Run: {ui_url}/runs/flow-run/{run_id}", soft_wrap=True)
        if watch:
            _watch(run_id, ui_url, _next_steps(deployment, cluster, environment))


def _watch(run_id: UUID, ui_url: str, next_steps: list[str]) -> None:
    """Show a run until it ends; leaves with 1 if it did not end well."""
    from deployments.watch import closing, watch

    view = watch(run_id, console)
    is_good = view.run.state is not None and view.run.state.is_completed()
    closing(view, console, ui_url, next_steps if is_good else [])
    if not is_good:
        raise typer.Exit(1)


@app.command()
def follow(
    deployment: Annotated[str, typer.Argument(help="As onboard-app/default.")],
    site: SiteOption = None,
    minutes: Annotated[
        float, typer.Option(help="A run that began in the last minutes counts, too.")
    ] = 1.0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one to begin.")] = 120.0,
) -> None:
    """Wait for a run that a webhook or the clock starts, and show it until it ends."""
    with _explained():
        from deployments.watch import newest_run

        ui_url = _use_prefect(site)
        run_id = newest_run(deployment, minutes * 60, timeout)
        console.print(f"Run: {ui_url}/runs/flow-run/{run_id}", soft_wrap=True)
        _watch(run_id, ui_url, [])


def _start(deployment: str, parameters: dict[str, Any]) -> tuple[UUID, str, str]:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise NotFound(
                f"Unable to run {deployment}: there is no such deployment. "
                "Run: infraflows setup --site <file>."
            ) from error
        spec = parameters.get("spec") or found.parameters.get("spec") or {}
        try:
            made = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        except PrefectHTTPStatusError as error:
            raise _refused(deployment, error) from error
    return made.id, str(spec.get("name", "")), str(spec.get("environment", ""))


def _refused(deployment: str, error: PrefectHTTPStatusError) -> LifecycleError:
    """Return the server's refusal of parameters as an error of ours; it checks their schema."""
    response = error.response
    if response.status_code not in (409, 422):
        return PermanentError(
            f"Unable to run {deployment}: the Prefect server answered {response.status_code}. "
            "Read its log."
        )
    detail = str(response.json().get("detail", response.text))
    # What was refused may be a secret that somebody took for a hint: it is not repeated.
    shown = re.sub(
        r"Failure reason: '.*' (does not match|is too)", r"Failure reason: it \1", detail
    )
    return InvalidSpec(f"the parameters of {deployment}", [shown])


def _next_steps(deployment: str, cluster: str, environment: str) -> list[str]:
    if deployment.startswith("bootstrap-cluster/"):
        return [
            f"Kubeconfig: infraflows kubeconfig {cluster} --environment {environment} "
            f"--output {cluster}.kubeconfig",
            f"Remove it: infraflows run decommission-cluster/{environment} --watch",
        ]
    return []


@app.command()
def approve(
    run_id: UUID,
    site: SiteOption = None,
    plan_hash: Annotated[
        str, typer.Option(help="Hash of the plan that is meant; the shown one if absent.")
    ] = "",
    by: Annotated[str, typer.Option(help="Who approves.")] = "",
    reject: Annotated[bool, typer.Option("--reject", help="Refuse the plan instead.")] = False,
) -> None:
    """Answer a run that waits at its gate."""
    with _explained():
        _use_prefect(site)
        from deployments.approve import answer, shown_plan_hash

        meant = plan_hash or shown_plan_hash(run_id)
        answer(run_id, approve=not reject, plan_hash=meant, approver=by or getpass.getuser())
        console.print(f"{'Rejected' if reject else 'Approved'} plan {meant[:12]} of run {run_id}.")


@app.command()
def runs(site: SiteOption = None, limit: int = 20) -> None:
    """List the latest runs."""
    with _explained():
        _use_prefect(site)
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.sorting import FlowRunSort

        from deployments.watch import table

        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(limit=limit, sort=FlowRunSort.START_TIME_DESC)
        rows = [
            {
                "id": str(item.id),
                "state": item.state.name if item.state else "",
                "seconds": f"{item.estimated_run_time.total_seconds():.0f}",
                "name": item.name,
            }
            for item in found
        ]
        console.print(table(rows, "Runs", ("id", "state", "seconds", "name")))


@app.command()
def kubeconfig(
    cluster: str,
    output: Annotated[Path, typer.Option("--output", help="File to write, readable by you only.")],
    environment: Annotated[str, typer.Option("--environment")] = "lab",
    site: SiteOption = None,
) -> None:
    """Fetch a cluster's administrator kubeconfig from OpenBao into a private file."""
    with _explained():
        _use_prefect(site)
        from blocks.openbao import openbao

        with openbao(environment).session() as bao:
            text = bao.read(f"clusters/{cluster}/kubeconfig")["kubeconfig"]
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
        console.print(f"Written: {output}. Use it: kubectl --kubeconfig {output} get nodes")


@app.command("verify-ledger")
def verify_ledger(
    ledger: Path,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="Public keys; beside the ledger if absent.")
    ] = None,
) -> None:
    """Check a ledger's chain and signatures; needs no network."""
    with _explained():
        from blocks.ledger_file import LedgerFile

        count, findings = LedgerFile(ledger).verify(keys)
        for finding in findings:
            errors.print(f"line {finding.line}: {finding.text}", markup=False, soft_wrap=True)
        if findings:
            raise PermanentError(
                f"Unable to trust the ledger {ledger}: {len(findings)} of {count} lines are wrong. "
                "Keep the file as it is and find out who wrote to it."
            )
        console.print(f"{ledger}: {count} lines, chain and signatures are right.", soft_wrap=True)


@app.command()
def pause(
    reason: Annotated[str, typer.Option("--reason", help="Why nothing may change now.")],
    owner: Annotated[str, typer.Option("--owner", help="Who can lift it.")],
    environment: Annotated[str, typer.Option("--environment")] = "lab",
    site: SiteOption = None,
) -> None:
    """Stop every flow of an environment before it changes anything."""
    with _explained():
        _use_prefect(site)
        from tasks.runs.pause_switch import set_pause

        set_pause(environment, reason, owner)
        console.print(f"Paused {environment}: {reason} ({owner}).")


@app.command()
def gateway(site: Annotated[Path, typer.Option("--site", envvar="INFRAFLOWS_SITE")]) -> None:
    """Take webhooks of GitLab and Alertmanager, and start flows for them."""
    with _explained():
        from deployments.gateway.serve import serve

        serve(site)


@app.command()
def unpause(
    environment: Annotated[str, typer.Option("--environment")] = "lab", site: SiteOption = None
) -> None:
    """Let the flows of an environment change things again."""
    with _explained():
        _use_prefect(site)
        from tasks.runs.pause_switch import lift_pause

        lift_pause(environment)
        console.print(f"{environment} is not paused.")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
