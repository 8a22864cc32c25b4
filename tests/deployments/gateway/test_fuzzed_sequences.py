"""Ten thousand sequences of deliveries, each against what it should have led to.

A sequence is one project's life: commits, merge requests and deployments of a team, delivered by a
network that loses, repeats, reorders and delays, among deliveries of strangers that are forged,
old, huge or nonsense. OpenBao, GitLab and Prefect fail now and then, also after they have done
what was asked; the gateway is stopped in the middle of its work and started again on its store.
The seed is fixed: the same sequences are played each time, though not interleaved alike.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from deployments.gateway.ports import MergeRequestFile, RunState
from deployments.gateway.settings import Limits
from domain.errors import Unreachable
from domain.webhooks.rate_limit import Rate
from domain.webhooks.signatures import decoded_key, sign

from .conftest import (
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

SEQUENCES = 10_000
WAVE = 1_000
AT_ONCE = 64
SEED = 5
BODY_BYTES = 16 * 1024
LIMITS = Limits(
    body_bytes=BODY_BYTES,
    source_rate=Rate(1e9, 1e9),
    project_rate=Rate(1e9, 1e9),
    lookup_rate=Rate(1e9, 1e9),
)
FORGERIES = (
    *("signature", "key", "body", "old", "new", "huge", "stream", "cut", "nonsense", "deep"),
    *("token", "none", "unknown", "type", "repeated", "version", "id", "project"),
)
INVALID = "name: Not A Name\nport: eighty\n"
STORED, REFUSED = frozenset((200, 202)), frozenset((400, 401, 404, 413, 415))


@dataclass
class Sequence:
    """One project and all that happened to it."""

    project: Project
    has_losses: bool = False
    is_only_forged: bool = False
    heads: list[str | None] = field(default_factory=list)
    deployments: dict[int, str] = field(default_factory=dict)
    accepted_deployments: set[int] = field(default_factory=set)
    mr_text: str | None = None
    is_mr_told: bool = False
    late: list[tuple[bytes, list[tuple[str, str]], Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"app-{self.project.project_id}"


class Fuzz:
    """Plays sequences and remembers what was answered."""

    def __init__(self, world: World, random: Random) -> None:
        self.world, self.random = world, random
        self.answers: Counter[str] = Counter()
        self.sent = 0

    # --- one sequence ------------------------------------------------------------------------

    def new(self, number: int) -> Sequence:
        sequence = Sequence(self.world.add_project(number))
        kind = self.random.random()
        sequence.is_only_forged = kind < 0.1
        sequence.has_losses = kind > 0.5
        return sequence

    async def play_within(
        self, limit: asyncio.Semaphore, gateway: Gateway, sequence: Sequence
    ) -> None:
        async with limit:
            await self.play(gateway, sequence)

    async def play(self, gateway: Gateway, sequence: Sequence) -> None:
        random, project = self.random, sequence.project
        can_be_invalid = random.random() < 0.3
        for number in range(random.randint(1, 4)):
            happening = random.choices(
                ("commit", "unrelated", "merge request", "deployment", "forged"),
                (4 if number else 9, 1, 1, 0 if can_be_invalid else 1, 3),
            )[0]
            if happening == "forged" or sequence.is_only_forged:
                if sequence.is_only_forged and project.text is None:
                    self.world.commit(project, app_text(sequence.name))
                    sequence.heads.append(project.text)
                await self.forge(gateway, sequence)
            elif happening == "commit" or project.text is None:
                is_bad = can_be_invalid and random.random() < 0.5
                text = app_text(sequence.name, port=random.randint(2000, 60000))
                self.world.commit(project, INVALID if is_bad else text)
                sequence.heads.append(None if is_bad else text)
                await self.deliver(gateway, sequence, push(project, first=not number))
            elif happening == "unrelated":
                await self.deliver(gateway, sequence, push(project, touches=False))
            elif happening == "merge request":
                await self.merge_request(gateway, sequence)
            else:
                await self.deployment(gateway, sequence)
        random.shuffle(sequence.late)
        for body, headers, event in sequence.late:
            await self.send(gateway, sequence, body, headers, event)
        if sequence.has_losses:
            await self.reconcile(gateway, sequence)

    async def merge_request(self, gateway: Gateway, sequence: Sequence) -> None:
        text = self.random.choice((INVALID, app_text(sequence.name, port=1999)))
        sequence.mr_text = text
        sequence.project.merge_requests[7] = MergeRequestFile("storefront/shop", True, text, None)
        await self.deliver(gateway, sequence, merge_request(sequence.project, 7))

    async def deployment(self, gateway: Gateway, sequence: Sequence) -> None:
        number = 100 + len(sequence.deployments)
        sequence.deployments[number] = secrets.token_hex(4)
        event = deployment(sequence.project, number, sequence.deployments[number])
        await self.deliver(gateway, sequence, event)

    async def deliver(self, gateway: Gateway, sequence: Sequence, event: dict[str, Any]) -> None:
        """Hand an event to the network."""
        body = json.dumps(event).encode()
        headers = signed(
            sequence.project.key, body, self.world.now + self.random.randint(-250, 250)
        )
        fate = self.random.random()
        if sequence.has_losses and fate < 0.3:
            return
        if fate > 0.8:
            sequence.late.append((body, headers, event))
            if fate > 0.9:
                return
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            await self.send(gateway, sequence, body, headers, event)

    async def send(
        self, gateway: Gateway, sequence: Sequence, body: bytes, headers: Any, event: Any
    ) -> None:
        """Deliver as GitLab does: what is not stored comes again."""
        for _ in range(20):
            self.sent += 1
            reply = await gateway.send("/gitlab", body, headers)
            self.answers[str(reply.body["status"])] += 1
            if reply.status in STORED:
                break
            assert reply.status == 503, reply
        else:
            pytest.fail("a right delivery was never stored")
        if event["object_kind"] == "deployment":
            sequence.accepted_deployments.add(event["deployment_id"])
        sequence.is_mr_told |= event["object_kind"] == "merge_request"

    async def reconcile(self, gateway: Gateway, sequence: Sequence) -> None:
        event = {
            "object_kind": "infraflows_reconcile",
            "project_id": sequence.project.project_id,
        }
        body, now = json.dumps(event).encode(), int(self.world.now)
        message_id = secrets.token_hex(8)
        signature = sign(decoded_key(sequence.project.key), message_id, now, body)
        headers = [
            ("webhook-id", message_id),
            ("webhook-timestamp", str(now)),
            ("webhook-signature", signature),
        ]
        await self.send(gateway, sequence, body, headers, event)

    # --- strangers -----------------------------------------------------------------------------

    async def forge(self, gateway: Gateway, sequence: Sequence) -> None:
        """Send what must not have an effect."""
        project, now = sequence.project, self.world.now
        body = json.dumps(push(project)).encode()
        headers, parts = signed(project.key, body, now), None
        kind = self.random.choice(FORGERIES)
        media = "application/json"
        match kind:
            case "signature":
                headers[2] = ("webhook-signature", "v1," + base64.b64encode(b"x" * 32).decode())
            case "key":
                other = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
                headers = signed(other, body, now)
            case "body":
                body = body.replace(b"app.yaml", b"App.yaml")
            case "old":
                headers = signed(project.key, body, now - self.random.randint(302, 10**6))
            case "new":
                headers = signed(project.key, body, now + self.random.randint(302, 10**6))
            case "huge":
                body += b" " * BODY_BYTES
            case "stream":
                parts = [body, *([b" " * 1024] * 32)]
            case "cut":
                body = body[: self.random.randrange(1, len(body))]
            case "nonsense":
                body = self.random.randbytes(200)
            case "deep":
                body = b'{"project_id":1,"a":' + b"[" * 5000
            case "token":
                headers[2] = ("webhook-signature", "v1,AAAA")
                headers.append(("x-gitlab-token", "anything"))
            case "none":
                headers = []
            case "unknown":
                body = json.dumps({"object_kind": "push", "project_id": 10**9}).encode()
            case "type":
                media = "text/plain"
            case "repeated":
                headers.append(headers[2])
            case "version":
                headers[2] = ("webhook-signature", headers[2][1].replace("v1,", "v2,"))
            case "id":
                headers[0] = ("webhook-id", headers[0][1] + ".1")
            case "project":
                # A right signature of another project over this one's event.
                other_project = self.world.projects[self.random.choice(list(self.world.projects))]
                if other_project is project:
                    return
                headers = signed(other_project.key, body, now)
        self.sent += 1
        reply = await gateway.send("/gitlab", body, headers, kind=media, parts=parts)
        self.answers[f"forged {reply.status}"] += 1
        assert reply.status in REFUSED or reply.status == 503, (kind, reply)
        assert b"app.yaml" not in json.dumps(reply.body).encode()

    # --- the world ------------------------------------------------------------------------------

    def fault(self, where: str) -> None:
        if self.random.random() < 0.02:
            raise Unreachable(f"Unable to reach {where}: it fails now and then. Wait.")

    async def settle(self, gateway: Gateway, *, can_fail: bool) -> None:
        """Let time pass and runs end until nothing is pending."""
        world = self.world
        async with asyncio.timeout(300):
            while await gateway.store.pending() or world.open:
                if not gateway.dispatcher._lanes:
                    world.now += 2.0
                    gateway.dispatcher.wake()
                world.step(self.random, can_fail=can_fail)
                await asyncio.sleep(0.002)


class FuzzWorld(World):
    """Runs take their time and fail now and then; two of one project never run at once."""

    def __init__(self) -> None:
        super().__init__()
        self.ends_runs_at_once = False
        self.open: dict[str, RunState] = {}
        self.running_of: Counter[str] = Counter()
        self.of_project: defaultdict[int, list[str]] = defaultdict(list)
        self.tags: defaultdict[str, list[str]] = defaultdict(list)

    async def start(self, deployment: str, parameters: Any, key: str) -> str:
        before = len(self.runs)
        try:
            return await super().start(deployment, parameters, key)
        finally:
            if len(self.runs) > before:
                self._note(f"run-{len(self.runs)}")

    def _note(self, run_id: str) -> None:
        self.open[run_id] = RunState.WAITING
        run = self.runs[run_id]
        if "app" in run:
            self.of_project[run["project_id"]].append(run_id)
        else:
            self.tags[run["name"]].append(run["tag"])

    def step(self, random: Random, *, can_fail: bool) -> None:
        for run_id in list(self.open):
            state = self.states[run_id]
            if state is RunState.WAITING and random.random() < 0.7:
                scope = run_id_scope(self.runs[run_id])
                self.running_of[scope] += 1
                assert self.running_of[scope] == 1, f"two runs of {scope} at once"
                self.states[run_id] = self.open[run_id] = RunState.RUNNING
            elif state is RunState.RUNNING:
                self.running_of[run_id_scope(self.runs[run_id])] -= 1
                is_failed = can_fail and random.random() < 0.05
                self.end(run_id, RunState.FAILED if is_failed else RunState.DONE)
                del self.open[run_id]
            elif state not in (RunState.WAITING, RunState.RUNNING):
                del self.open[run_id]


def run_id_scope(run: dict[str, Any]) -> str:
    return f"{run['deployment']} {run['app']['name'] if 'app' in run else run['name']}"


def check(world: FuzzWorld, sequence: Sequence) -> None:
    """Compare what is there with what should be."""
    name, project = sequence.name, sequence.project
    runs = world.of_project[project.project_id]
    if sequence.is_only_forged:
        assert not runs
        assert name not in world.tenants
        return
    # Nothing was ever asked for that was not at the head once.
    ports = {int(t.split("port: ")[1].split("\n")[0]) for t in sequence.heads if t}
    assert {world.runs[run_id]["app"]["port"] for run_id in runs} <= ports
    assert {world.runs[run_id]["app"]["name"] for run_id in runs} <= {name}
    # One wish, one run that did it.
    done = [world.runs[r]["app"] for r in runs if world.states[r] is RunState.DONE]
    assert all(one != following for one, following in pairwise(done))
    head = sequence.heads[-1] if sequence.heads else None
    if head:
        wanted = int(head.split("port: ")[1].split("\n")[0])
        assert name in world.tenants, [(world.states[r], world.runs[r]) for r in runs]
        assert world.tenants[name]["app"]["port"] == wanted, sequence
        assert world.tenants[name]["project_id"] == project.project_id
    if sequence.accepted_deployments:
        newest = max(sequence.accepted_deployments)
        assert world.tags[name][-1] == sequence.deployments[newest]
    if sequence.is_mr_told and not sequence.has_losses:
        notes = project.notes.get(7, [])
        # A merge request that brings what is on the branch already needs no comment.
        assert len(notes) == 1 or (sequence.mr_text == INVALID and None in sequence.heads)
        for note in notes:
            assert ("cannot be used" in note) == (sequence.mr_text == INVALID)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder without a disk's latency: what survives a kill is another test's question."""
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    with TemporaryDirectory(dir=place) as directory:
        yield Path(directory)


async def test_10000_fuzzed_sequences_lead_to_exactly_one_correct_tenant_each(
    memory: Path,
) -> None:
    random, world = Random(SEED), FuzzWorld()  # noqa: S311 - to be repeated, not to be secret
    fuzz = Fuzz(world, random)
    for first in range(1, SEQUENCES + 1, WAVE):
        wave = [fuzz.new(number) for number in range(first, first + WAVE)]
        world.fault = fuzz.fault
        async with running_gateway(world, memory, LIMITS) as gateway:
            limit = asyncio.Semaphore(AT_ONCE)
            await asyncio.gather(*(fuzz.play_within(limit, gateway, each) for each in wave))
            world.step(random, can_fail=True)
            # Stopped here, in the middle of its work: what it holds is taken up by the next.
        async with running_gateway(world, memory, LIMITS) as gateway:
            await fuzz.settle(gateway, can_fail=True)
            world.fault = lambda _: None
            failed = _failed_projects(world)
            for sequence in [s for s in wave if s.project.project_id in failed]:
                await fuzz.reconcile(gateway, sequence)
            await fuzz.settle(gateway, can_fail=False)
            for sequence in wave:
                check(world, sequence)
            counts = await gateway.store.counts()
            assert not counts.get("failed"), counts
    print(fuzz.sent, dict(fuzz.answers))
    assert fuzz.sent > 2 * SEQUENCES
    assert fuzz.answers["duplicate"] > 1000
    assert fuzz.answers["forged 401"] > 1000


def _failed_projects(world: World) -> set[int]:
    return {
        run["project_id"]
        for run_id, run in world.runs.items()
        if "project_id" in run and world.states[run_id] is RunState.FAILED
    }
