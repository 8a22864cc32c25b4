"""What follows from what is stored."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.gateway.ports import MergeRequestFile, RunState

from .conftest import (
    Eventually,
    Gateway,
    Project,
    World,
    app_text,
    deployment,
    merge_request,
    push,
    running_gateway,
    signed,
)

ONBOARD, DEPLOY = "onboard-app/default", "deploy-app/default"


async def pushed(world: World, gateway: Gateway, project: Project, text: str | None) -> None:
    world.commit(project, text)
    assert (await gateway.deliver(project, push(project), world.now)).status == 202


async def reconciled(world: World, gateway: Gateway, project: Project) -> None:
    event = {"object_kind": "infraflows_reconcile", "project_id": project.project_id}
    assert (await gateway.deliver(project, event, world.now)).status == 202


def ports(world: World) -> list[int]:
    return [run["app"]["port"] for run in world.runs_of(ONBOARD)]


async def test_a_late_event_leads_to_what_the_head_says(world: World, gateway: Gateway) -> None:
    project = world.add_project(17, app_text("shop", port=8001))
    old = push(project)
    world.commit(project, app_text("shop", port=8002))
    await gateway.deliver(project, push(project), world.now)
    await gateway.settle()
    await gateway.deliver(project, old, world.now)
    await gateway.settle()
    assert ports(world) == [8002]


async def test_there_and_back_again_are_three_runs(world: World, gateway: Gateway) -> None:
    project = world.add_project(17)
    for port in (8001, 8002, 8001):
        await pushed(world, gateway, project, app_text("shop", port=port))
        await gateway.settle()
    assert ports(world) == [8001, 8002, 8001]


async def test_a_comment_in_the_file_is_nothing_to_do(world: World, gateway: Gateway) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    await pushed(world, gateway, project, app_text("shop") + "# nothing\n")
    await gateway.settle()
    assert len(world.runs) == 1


async def test_a_moved_project_is_the_same_application_and_is_brought_to_its_new_path(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    project.path = "retail/web-shop"
    await reconciled(world, gateway, project)
    await gateway.settle()
    runs = world.runs_of(ONBOARD)
    assert [run["app"]["repository"] for run in runs] == ["storefront/shop", "retail/web-shop"]
    assert {run["project_id"] for run in runs} == {17}


async def test_an_invalid_file_is_answered_on_its_commit_with_lines_and_changes_nothing(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, "name: Shop\nport: eighty\n")
    await gateway.settle()
    assert not world.runs
    (text,) = project.commit_comments.values()
    assert "cannot be used" in text
    assert "[1](https://gitlab.example/page#L1)" in text
    assert "[2](https://gitlab.example/page#L2)" in text
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    assert "shop" in world.tenants


async def test_a_changed_name_is_refused_on_the_commit(world: World, gateway: Gateway) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    await pushed(world, gateway, project, app_text("store"))
    await gateway.settle()
    assert set(world.tenants) == {"shop"}
    assert "never changes" in project.commit_comments[project.commit]


async def test_after_off_boarding_the_name_is_free_and_the_same_file_counts_again(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    world.tenants.clear()
    await reconciled(world, gateway, project)
    await gateway.settle()
    assert not world.tenants
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    assert set(world.tenants) == {"shop"}
    world.tenants.clear()
    event = {"object_kind": "infraflows_connect", "project_id": 17}
    await gateway.deliver(project, event, world.now)
    await gateway.settle()
    assert set(world.tenants) == {"shop"}
    world.tenants.clear()
    await pushed(world, gateway, project, app_text("store"))
    await gateway.settle()
    assert set(world.tenants) == {"store"}


async def test_a_removed_file_takes_nothing_off_and_says_so(world: World, gateway: Gateway) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    await pushed(world, gateway, project, None)
    await gateway.settle()
    assert set(world.tenants) == {"shop"}
    assert "offboard-app" in project.commit_comments[project.commit]


async def test_a_project_without_the_file_is_left_alone(world: World, gateway: Gateway) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, None)
    await gateway.settle()
    assert not project.commit_comments
    assert await gateway.store.counts() == {"done": 1}


async def test_a_project_that_is_gone_is_given_up_and_taken_up_when_sent_again(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    del world.projects[17]
    await gateway.deliver(project, push(project), world.now, "one-id")
    await gateway.settle()
    assert await gateway.store.counts() == {"failed": 1}
    world.projects[17] = project
    assert (await gateway.deliver(project, push(project), world.now, "one-id")).status == 202
    await gateway.settle()
    assert set(world.tenants) == {"shop"}


# --- one run at a time ------------------------------------------------------------------------


async def test_a_run_that_has_not_begun_gives_way_to_the_newer_wish(
    world: World, gateway: Gateway
) -> None:
    world.ends_runs_at_once = False
    project = world.add_project(17)
    for port in (8001, 8002):
        await pushed(world, gateway, project, app_text("shop", port=port))
        await gateway.settle()
    assert world.states == {"run-1": RunState.GONE, "run-2": RunState.WAITING}


async def test_a_run_that_has_begun_is_waited_for(
    world: World, gateway: Gateway, eventually: Eventually
) -> None:
    world.ends_runs_at_once = False
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop", port=8001))
    await gateway.settle()
    world.states["run-1"] = RunState.RUNNING
    await pushed(world, gateway, project, app_text("shop", port=8002))
    await asyncio.sleep(0.1)
    assert len(world.runs) == 1
    world.end("run-1")
    world.now += 5
    await gateway.settle()
    assert ports(world) == [8001, 8002]


async def test_one_projects_run_holds_up_nobody_else(world: World, gateway: Gateway) -> None:
    world.ends_runs_at_once = False
    slow, quick = world.add_project(17), world.add_project(18)
    await pushed(world, gateway, slow, app_text("slow", port=8001))
    await gateway.settle()
    world.states["run-1"] = RunState.RUNNING
    await pushed(world, gateway, slow, app_text("slow", port=8002))
    await pushed(world, gateway, quick, app_text("quick"))
    async with asyncio.timeout(5):
        while len(world.runs) < 2:
            await asyncio.sleep(0.01)
    assert world.runs["run-2"]["app"]["name"] == "quick"


async def test_a_wish_that_comes_back_after_it_was_withdrawn_is_started_anew(
    world: World, tmp_path: Path
) -> None:
    world.ends_runs_at_once = False
    project = world.add_project(17)
    async with running_gateway(world, tmp_path) as gateway:
        await pushed(world, gateway, project, app_text("shop", port=8001))
        await gateway.settle()
        world.fault = _only_once(world, "prefect")
        await pushed(world, gateway, project, app_text("shop", port=8002))
        while world.states["run-1"] is RunState.WAITING:
            await asyncio.sleep(0.01)
    # Killed after the first was withdrawn and before the second was started; then undone by hand.
    world.commit(project, app_text("shop", port=8001))
    world.now += 60
    world.fault = lambda _: None
    world.ends_runs_at_once = True
    async with running_gateway(world, tmp_path) as gateway:
        await gateway.settle()
    assert world.tenants["shop"]["app"]["port"] == 8001


def _only_once(world: World, place: str):
    def fault(where: str) -> None:
        if where == place:
            raise asyncio.CancelledError

    return fault


async def test_killed_between_storing_and_starting_it_is_one_run(
    world: World, tmp_path: Path
) -> None:
    project = world.add_project(17)
    for moment in ("prefect", "prefect answered"):
        world.fault = _only_once(world, moment)
        async with running_gateway(world, tmp_path) as gateway:
            await pushed(world, gateway, project, app_text("shop", port=len(moment) + 2000))
            await asyncio.sleep(0.2)
        world.fault = lambda _: None
        world.now += 60
        async with running_gateway(world, tmp_path) as gateway:
            await gateway.settle()
    assert ports(world) == [2007, 2016]


async def test_a_failed_run_is_tried_again_by_reconciling_three_times_and_by_a_push_always(
    world: World, gateway: Gateway
) -> None:
    world.ends_runs_at_once = False
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    for _ in range(5):
        for run_id, state in world.states.items():
            if state is RunState.WAITING:
                world.end(run_id, RunState.FAILED)
        await reconciled(world, gateway, project)
        await gateway.settle()
    assert len(world.runs) == 3
    await gateway.deliver(project, push(project), world.now)
    await gateway.settle()
    assert len(world.runs) == 4


async def test_reconciling_what_is_as_it_should_be_starts_nothing(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    for _ in range(3):
        await reconciled(world, gateway, project)
        await gateway.settle()
    assert len(world.runs) == 1


async def test_reconciling_finds_what_no_delivery_told(world: World, gateway: Gateway) -> None:
    project = world.add_project(17, app_text("shop"))
    await reconciled(world, gateway, project)
    await gateway.settle()
    assert set(world.tenants) == {"shop"}


@pytest.mark.parametrize("system", ["is_gitlab_up", "is_prefect_up"])
async def test_a_system_that_is_down_delays_and_loses_nothing(
    world: World, gateway: Gateway, system: str
) -> None:
    setattr(world, system, False)
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await asyncio.sleep(0.1)
    assert await gateway.store.pending() == 1
    setattr(world, system, True)
    world.now += 10
    await gateway.settle()
    assert len(world.runs) == 1


# --- merge requests -----------------------------------------------------------------------------


def proposed(text: str | None, *, is_open: bool = True) -> MergeRequestFile:
    return MergeRequestFile("storefront/shop", is_open, text, None, "https://gitlab.example/mr")


async def test_a_merge_request_has_one_comment_that_follows_its_head(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    seen = []
    for text in ("name: Shop\n", app_text("shop", port=9000), None):
        project.merge_requests[3] = proposed(text)
        await gateway.deliver(project, merge_request(project, 3, "update"), world.now)
        await gateway.settle()
        seen.append(project.notes[3])
    assert [len(notes) for notes in seen] == [1, 1, 1]
    assert "cannot be used" in seen[0][0]
    assert "https://gitlab.example/mr#L1" in seen[0][0]
    assert "is in order" in seen[1][0]
    assert "no app.yaml" in seen[2][0]
    assert not world.runs


async def test_a_merge_request_that_leaves_the_file_alone_is_not_commented(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    for number, text in enumerate((project.text, None)):
        project.merge_requests[number + 1] = proposed(text)
        await gateway.deliver(project, merge_request(project, number + 1), world.now)
    project.merge_requests[9] = replace(proposed("x"), is_open=False)
    await gateway.deliver(project, merge_request(project, 9), world.now)
    await gateway.settle()
    assert not project.notes


# --- deployments --------------------------------------------------------------------------------


async def test_the_newest_deployment_wins_whatever_comes_last(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    for number, tag in ((5, "aaaaaaa5"), (7, "aaaaaaa7"), (6, "aaaaaaa6"), (7, "aaaaaaa7")):
        await gateway.deliver(project, deployment(project, number, tag), world.now)
        await gateway.settle()
    runs = world.runs_of(DEPLOY)
    assert [(run["name"], run["stage"], run["tag"]) for run in runs] == [
        ("shop", "staging", "aaaaaaa5"),
        ("shop", "staging", "aaaaaaa7"),
    ]


async def test_a_tag_of_the_branchs_name_deploys_nothing_that_is_not_on_the_branch(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    project.unreviewed.add("bbbbbbb2")
    world.is_gitlab_up = False
    for number, tag in ((5, "aaaaaaa1"), (6, "bbbbbbb2")):
        await gateway.deliver(project, deployment(project, number, tag), world.now)
    world.is_gitlab_up = True
    world.now += 5
    await gateway.settle()
    assert [run["tag"] for run in world.runs_of(DEPLOY)] == ["aaaaaaa1"]
    await gateway.deliver(project, deployment(project, 7, "bbbbbbb2"), world.now)
    await gateway.settle()
    assert len(world.runs_of(DEPLOY)) == 1


async def test_stages_are_deployed_apart(world: World, gateway: Gateway) -> None:
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    await gateway.settle()
    for number, stage in ((5, "production"), (4, "staging")):
        event = deployment(project, number, "aaaaaaa1", stage=stage)
        await gateway.deliver(project, event, world.now)
    await gateway.settle()
    assert {run["stage"] for run in world.runs_of(DEPLOY)} == {"production", "staging"}


async def test_a_deployment_waits_until_its_project_is_onboarded_for_a_day_at_most(
    world: World, gateway: Gateway
) -> None:
    early, never = world.add_project(17), world.add_project(18)
    for project in (early, never):
        await gateway.deliver(project, deployment(project, 5, "aaaaaaa1"), world.now)
    await asyncio.sleep(0.1)
    assert await gateway.store.pending() == 2
    await pushed(world, gateway, early, app_text("shop"))
    world.now += 600
    async with asyncio.timeout(5):
        while not world.runs_of(DEPLOY):
            await asyncio.sleep(0.01)
    world.now += 25 * 3600
    await gateway.settle()
    assert (await gateway.store.counts())["failed"] == 1


async def test_a_failing_lane_is_asked_less_and_less_often(world: World, gateway: Gateway) -> None:
    world.is_gitlab_up = False
    project = world.add_project(17)
    await pushed(world, gateway, project, app_text("shop"))
    pauses = []
    for _ in range(6):
        await asyncio.sleep(0.06)
        rows = await gateway.store._do(lambda e: e.execute("SELECT due_at FROM deliveries"))
        pauses.append(rows[0][0] - world.now)
        world.now = rows[0][0] + 0.001
    assert all(later > earlier for earlier, later in zip(pauses[:-1:2], pauses[1::2], strict=False))
    assert pauses[-1] > 16


async def test_headers_of_the_test_are_those_of_the_independent_signer(world: World) -> None:
    project = world.add_project(17)
    names = [name for name, _ in signed(project.key, b"{}", world.now)]
    assert names == ["webhook-id", "webhook-timestamp", "webhook-signature"]
