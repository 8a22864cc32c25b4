"""The pages that an operator looks at, as a browser shows them; with a wish, pictures for docs/.

    INFRAFLOWS_UPDATE_PICTURES=1 pytest tests/lab/test_screenshots.py

The browser stands outside the lab's network, where a person's stands: the UI is forwarded there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lab.layout import Layout
from lab.services.service import read_record

pytestmark = pytest.mark.lab

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
IS_UPDATE = os.environ.get("INFRAFLOWS_UPDATE_PICTURES") == "1"
LARGEST_BYTES = 400_000
TIMEOUT_MILLISECONDS = 90_000
# The graph of a run is drawn on a canvas, which has no text to wait for.
EMPTY_GRAPH_BYTES = 12_000
BROKEN_IMAGES = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"


@pytest.fixture(scope="module")
def browser(lab: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "Chromium is missing. Install it: apt-get install chromium."
    outside = tmp_path_factory.mktemp("browser") / "chromium"
    # The watchdog stands outside; these tests may stand inside, where no UI is forwarded to.
    network = f"/proc/{read_record(lab, 'watchdog').pid}/ns/net"
    outside.write_text(f'#!/bin/sh\nexec nsenter --net={network} {program} "$@"\n')
    outside.chmod(0o755)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=outside,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-background-networking",
            ],
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1360, "height": 900}, color_scheme="dark")
    opened.set_default_timeout(TIMEOUT_MILLISECONDS)
    expect.set_options(timeout=TIMEOUT_MILLISECONDS)
    yield opened
    opened.close()


@pytest.fixture
def show(demo: Any, page: Page) -> Callable[[str], Page]:
    """Open the page of an artifact of the first run by the end of its key."""
    driver = demo.driver

    def open_artifact(kind: str) -> Page:
        body = {"artifacts": {"flow_run_id": {"any_": [demo.first.run_id]}}, "limit": 200}
        found = {a["key"]: a["id"] for a in driver.api("POST", "artifacts/filter", body)}
        artifact = found[f"{demo.name}-{kind}"]
        page.goto(f"{driver.layout.ui_url}/artifacts/artifact/{artifact}")
        return page

    return open_artifact


def keep(page: Page, name: str, tmp_path: Path) -> None:
    """Check the picture that would be shown, and put it into docs/ if that is wished."""
    assert page.evaluate(BROKEN_IMAGES) == 0
    path = (PICTURES if IS_UPDATE else tmp_path) / f"{name}.png"
    page.screenshot(path=path)
    assert 10_000 < path.stat().st_size < LARGEST_BYTES


def test_the_page_of_a_run_shows_its_tasks_and_how_it_ended(
    demo: Any, page: Page, tmp_path: Path
) -> None:
    page.goto(f"{demo.driver.layout.ui_url}/runs/flow-run/{demo.first.run_id}")
    expect(page.get_by_text("bootstrap demo").first).to_be_visible()
    expect(page.get_by_text("Completed").first).to_be_visible()
    expect(page.get_by_text("Phase preflight begins.")).to_be_visible()
    graph = page.locator("canvas").first
    for _ in range(60):
        if len(graph.screenshot()) > EMPTY_GRAPH_BYTES:
            break
        page.wait_for_timeout(1000)
    else:
        pytest.fail("the graph of the run's tasks stays empty")
    page.wait_for_timeout(1000)
    keep(page, "run", tmp_path)


def test_the_plan_is_a_table_of_what_would_be_made(
    show: Callable[[str], Page], tmp_path: Path
) -> None:
    page = show("plan")
    expect(page.get_by_text("Plan of demo: 5 create.")).to_be_visible()
    expect(page.get_by_text("demo-worker-2")).to_be_visible()
    assert page.locator("th").all_inner_texts() == [
        "action", "machine", "hypervisor", "what changes",
    ]  # fmt: skip
    assert page.locator("tbody tr").count() == 5
    keep(page, "plan", tmp_path)


def test_the_hosts_are_a_table_of_what_was_done_on_each(
    show: Callable[[str], Page], tmp_path: Path
) -> None:
    page = show("hosts")
    expect(page.get_by_text("What Ansible did on each machine of demo")).to_be_visible()
    expect(page.get_by_text("demo-server-3")).to_be_visible()
    headings = page.locator("th").all_inner_texts()
    assert headings[:5] == ["host", "state", "progress", "ok", "changed"]
    assert page.get_by_text("✔ changed").count() == 5
    keep(page, "hosts", tmp_path)


def test_the_report_shows_times_and_topology(show: Callable[[str], Page], tmp_path: Path) -> None:
    page = show("report")
    expect(page.get_by_text("Bootstrap of demo: succeeded")).to_be_visible()
    expect(page.get_by_role("heading", name="Machines")).to_be_visible()
    page.wait_for_function("() => document.images.length >= 2")
    page.wait_for_function(f"() => ({BROKEN_IMAGES})() === 0")
    keep(page, "report", tmp_path)


def test_the_form_of_a_deployment_describes_its_fields(demo: Any, page: Page) -> None:
    found = demo.driver.api("GET", "deployments/name/bootstrap-cluster/lab")
    page.goto(f"{demo.driver.layout.ui_url}/deployments/deployment/{found['id']}/run")
    expect(page.get_by_text("Name of the cluster; prefixes its machines.")).to_be_visible()
