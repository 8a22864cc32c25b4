"""Runs one gateway: TLS, uvicorn, the store, the systems of the site."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from blocks.delivery_store import DeliveryStore
from blocks.delivery_store_engines import Engine, PostgresqlEngine, SqliteEngine
from blocks.gitlab_server import GitLabServer
from blocks.openbao import OpenBaoServer
from deployments.gateway.acts import Acts
from deployments.gateway.app import gateway_app
from deployments.gateway.dispatcher import Dispatcher
from deployments.gateway.intake import Intake
from deployments.gateway.metrics import Metrics
from deployments.gateway.prefect_flows import PrefectFlows
from deployments.gateway.settings import Settings
from deployments.gateway.systems import GitLabProjects, OnboardedApps, OpenBaoSecrets
from deployments.site_file import SiteFile, read_site_file
from domain.errors import InvalidSpec

STORE_FILE = "deliveries.db"
GRACE_SECONDS = 10
IDLE_SECONDS = 30


def settings_of(site: SiteFile) -> Settings:
    """Return what a site's file says of its gateway.

    Raises:
        InvalidSpec: it says nothing of one.
    """
    part = site.gateway
    if part is None or site.onboarding is None:
        raise InvalidSpec(
            "the site file", ["gateway, onboarding: missing. Add both to run a gateway"]
        )
    return Settings(
        environment=site.environment,
        host=part.host,
        port=part.port,
        certificate_file=part.certificate_file,
        key_file=part.key_file,
        directory=Path(part.directory),
        store_credential=part.store_credential,
        is_dispatching=part.is_dispatching,
    )


def _engine(settings: Settings, bao: OpenBaoServer) -> Engine:
    if not settings.store_credential:
        return SqliteEngine(settings.directory / STORE_FILE)
    with bao.session() as session:
        login = session.read(settings.store_credential)
    return PostgresqlEngine(login)


def site_gateway(site: SiteFile, settings: Settings) -> Starlette:
    """Return the application of a site, its store open."""
    assert site.onboarding is not None  # noqa: S101 - `settings_of` has checked it
    bao = OpenBaoServer(**site.openbao.model_dump())
    gitlab = GitLabServer(**site.onboarding.gitlab.model_dump())
    metrics = Metrics()
    store = DeliveryStore(_engine(settings, bao))
    dispatcher = None
    if settings.is_dispatching:
        acts = Acts(
            settings.environment,
            store,
            GitLabProjects(gitlab, bao),
            PrefectFlows(),
            OnboardedApps(bao, settings.environment),
        )
        dispatcher = Dispatcher(store, acts, time.time, metrics)
    intake = Intake(
        settings.environment,
        store,
        OpenBaoSecrets(bao),
        time.time,
        settings.limits,
        metrics,
        wake=dispatcher.wake if dispatcher is not None else lambda: None,
    )
    return gateway_app(intake, store, dispatcher)


def serve(site_file: Path) -> None:
    """Serve until the process is told to end."""
    site = read_site_file(site_file)
    settings = settings_of(site)
    os.environ.setdefault("PREFECT_API_URL", site.prefect.api_url)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # One line for each request of ours to GitLab and OpenBao would be most of the log.
    for noisy in ("httpx", "urllib3", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uvicorn.run(
        site_gateway(site, settings),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.certificate_file,
        ssl_keyfile=settings.key_file,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        # The address of a sender is the connection's: a header could be anybody's word.
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
    )
