"""What follows from events: the truth is read from GitLab, and the rest from that.

Promises that an act carried out twice, late or in another order has the result that the newest
state of GitLab asks for. Refuses to take the content of an event for the truth.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from blocks.app_file import read_app_file
from blocks.delivery_store import DeliveryStore
from deployments.gateway.outcomes import Done, Later, Outcome
from deployments.gateway.ports import FlowPort, GitLabPort, HeadFile, JournalPort, RunState
from deployments.gateway.runs import TRIES_BY_ITSELF, Runs, Wish
from domain.onboarding.app_problems import AppProblem, InvalidAppFile, comment, inert
from domain.onboarding.app_spec import AppSpec
from domain.webhooks.delivery import Dispatch
from domain.webhooks.gitlab_events import APP_FILE, Deployed

ONBOARD = "onboard-app/default"
DEPLOY = "deploy-app/default"
THREADS = 8

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


class Acts:
    """Acts in one environment."""

    def __init__(
        self,
        environment: str,
        store: DeliveryStore,
        gitlab: GitLabPort,
        flows: FlowPort,
        journals: JournalPort,
    ) -> None:
        """Speak to the systems by these."""
        self._environment = environment
        self._gitlab = gitlab
        self._journals = journals
        self._runs = Runs(environment, store, flows)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="acts")

    def close(self) -> None:
        """Let threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _blocking(
        self,
        call: Callable[Parameters, Result],
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: call(*arguments, **named))

    # --- the default branch --------------------------------------------------------------------

    async def app_changed(self, project: int, *, is_reconcile: bool) -> Outcome:
        """Bring what is onboarded to what `app.yaml` says at the head."""
        head = await self._blocking(self._gitlab.head_file, project)
        last = await self._runs.last(_onboard(project))
        if head.text is None:
            return await self._without_file(project, head, last)
        try:
            app = read_app_file(head.text, repository=head.repository)
            await self._refuse_new_name(app, last)
        except InvalidAppFile as error:
            # Upserted: the same commit read again, for whatever reason, has one comment.
            text = comment(error, head.page)
            await self._blocking(self._gitlab.comment_on_commit, project, head.commit, text)
            return Done(f"{APP_FILE} at {head.commit[:12]} has {len(error.problems)} problems")
        wish = Wish(
            scope=_onboard(project),
            marker=hashlib.sha256(app.model_dump_json().encode()).hexdigest(),
            name=app.name,
            deployment=ONBOARD,
            parameters={
                "environment": self._environment,
                "app": app.model_dump(mode="json"),
                "project_id": project,
                "commit": head.commit,
            },
        )
        if last is not None and last.run_id and last.marker == wish.marker:
            reason = await self._reason_to_stay(last, is_reconcile=is_reconcile)
            if reason:
                return Done(reason)
        return await self._runs.make(wish, last)

    async def _without_file(self, project: int, head: HeadFile, last: Dispatch | None) -> Outcome:
        if last is None or not head.commit:
            return Done(f"there is no {APP_FILE} at the head")
        if await self._blocking(self._journals.is_onboarded, last.name):
            text = (
                f"**{APP_FILE} is gone; {inert(last.name)} is not.** Removing the file changes "
                "nothing. To take the application off, have an operator run "
                f"`offboard-app` for `{inert(last.name)}`, or restore the file.\n"
            )
            await self._blocking(self._gitlab.comment_on_commit, project, head.commit, text)
        return Done(f"{APP_FILE} was removed; nothing else was")

    async def _refuse_new_name(self, app: AppSpec, last: Dispatch | None) -> None:
        """A name never changes: everything is called by it, and the old would be left behind."""
        if last is None or last.name == app.name:
            return
        if not await self._blocking(self._journals.is_onboarded, last.name):
            return
        text = (
            f"{app.name!r} is not {last.name!r}, as which this project is onboarded. A name never "
            "changes: write the old one, or have the application taken off first"
        )
        raise InvalidAppFile(APP_FILE, [AppProblem(("name",), text)])

    async def _reason_to_stay(self, last: Dispatch, *, is_reconcile: bool) -> str:
        """Return why a wish that was asked for before is not asked for again; empty if it is."""
        state = await self._runs.state(last)
        if state in (RunState.WAITING, RunState.RUNNING):
            return f"run {last.run_id} is at it"
        if state is RunState.FAILED:
            if is_reconcile and last.tries >= TRIES_BY_ITSELF:
                return f"run {last.run_id} failed, the last of {last.tries}; it needs a person"
            return ""
        if state is RunState.DONE and not await self._blocking(
            self._journals.is_onboarded, last.name
        ):
            # Taken off since: an operator's word, which the clock must not overrule.
            return f"{last.name} was taken off; a push brings it back" if is_reconcile else ""
        return f"run {last.run_id} had the same to do"

    # --- merge requests --------------------------------------------------------------------------

    async def merge_request_changed(self, project: int, iid: int) -> Outcome:
        """Keep one comment with every problem that `app.yaml` would have."""
        found = await self._blocking(self._gitlab.merge_request_file, project, iid)
        if not found.is_open:
            return Done("the merge request is not open any more")
        if not found.has_note and found.text in (None, found.target_text):
            return Done(f"the merge request does not change {APP_FILE}")
        if found.text is None:
            text = f"There is no {APP_FILE} in this merge request any more.\n"
        else:
            try:
                text = _welcome(read_app_file(found.text, repository=found.repository))
            except InvalidAppFile as error:
                text = comment(error, found.page)
        await self._blocking(self._gitlab.comment_on_merge_request, project, iid, text)
        return Done(f"the comment on !{iid} is up to date")

    # --- deployments -----------------------------------------------------------------------------

    async def deployed(self, project: int, events: Sequence[Deployed]) -> Outcome:
        """Have a stage run the newest tag that was deployed to it from the default branch."""
        scope = f"deploy/{project}/{events[0].stage.value}"
        last = await self._runs.last(scope)
        onboarded = await self._runs.last(_onboard(project))
        newest = None
        for event in sorted(events, key=lambda each: each.deployment_id, reverse=True):
            if last is not None and _was_asked_for(last, event):
                return Done(f"deployment {last.marker} was asked for")
            # A tag may have the branch's name, and be of a commit that nobody has reviewed.
            if await self._blocking(self._gitlab.is_on_default_branch, project, event.tag):
                newest = event
                break
        if newest is None:
            return Done("the commit is not on the default branch")
        if onboarded is None:
            return Later("the project is not onboarded")
        wish = Wish(
            scope=scope,
            marker=str(newest.deployment_id),
            name=onboarded.name,
            deployment=DEPLOY,
            parameters={
                "environment": self._environment,
                "name": onboarded.name,
                "stage": newest.stage.value,
                "tag": newest.tag,
            },
        )
        return await self._runs.make(wish, last)


def _was_asked_for(last: Dispatch, event: Deployed) -> bool:
    """True when this or a newer deployment was; one that was not acknowledged is asked again."""
    asked = int(last.marker)
    return asked > event.deployment_id or (asked == event.deployment_id and bool(last.run_id))


def _onboard(project: int) -> str:
    return f"onboard/{project}"


def _welcome(app: AppSpec) -> str:
    stages = ", ".join(stage.value for stage in app.stages)
    return (
        f"**{APP_FILE} is in order.** When this is merged, {inert(app.name)} of "
        f"{inert(app.team)} is brought to it in {stages}.\n"
    )
