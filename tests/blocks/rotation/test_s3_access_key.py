"""Access keys of a real object store, rotated under load and through kills."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hvac.exceptions import InvalidPath

from blocks.iam_server import IamServer
from blocks.rotation.registry import adapter_for
from blocks.rotation.s3_access_key import S3AccessKey
from blocks.rotation.site import RotationSite
from domain.errors import InvalidSpec, NotFound, PolicyViolation, QuotaExceeded, Unreachable
from domain.rotation.contract import Values
from domain.rotation.state import Step
from lab.bare_control_plane import Authority
from lab.bare_object_store import BareObjectStore

READ_EVERY = 8
ADMIN_PATH = "apps-admin/objects"
BUCKET = "photos"


def allowing(actions: str, *resources: str) -> str:
    statement = {"Effect": "Allow", "Action": [actions], "Resource": list(resources)}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


MAY_USE = allowing("s3:*", f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*")


@pytest.fixture(autouse=True)
def _prepared(site: Any, object_store: BareObjectStore) -> None:
    if site.versions.read(ADMIN_PATH).values is None:
        site.put(ADMIN_PATH, object_store.login)
        object_store.client("s3").create_bucket(Bucket=BUCKET)


def is_accepted(store: BareObjectStore, values: Values) -> bool:
    client = store.client("s3", values["access_key_id"], values["secret_access_key"])
    try:
        client.list_objects_v2(Bucket=BUCKET, MaxKeys=1)
    except ClientError as error:
        if error.response["Error"]["Code"] == "InvalidAccessKeyId":
            return False
        raise
    return True


def new_key(store: BareObjectStore, user: str) -> dict[str, str]:
    made = store.client("iam").create_access_key(UserName=user)["AccessKey"]
    return {"access_key_id": made["AccessKeyId"], "secret_access_key": made["SecretAccessKey"]}


def key_ids(store: BareObjectStore, user: str) -> set[str]:
    found = store.client("iam").list_access_keys(UserName=user)["AccessKeyMetadata"]
    return {each["AccessKeyId"] for each in found}


def has_read(site: Any, path: str) -> None:
    with suppress(InvalidPath):  # nothing is there before the first key
        site.get(path)


@pytest.fixture
def make_key(site: Any, make_world: Any, object_store: BareObjectStore) -> Callable[..., Any]:
    """Make a user of the store with one key, which lies at a path of its own."""

    def make(
        policy: str = MAY_USE,
        *,
        has_value: bool = True,
        is_observed: bool = False,
        **parameters: str,
    ) -> Any:
        store, user = object_store, site.name("app")
        iam = store.client("iam")
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="own", PolicyDocument=policy)
        given = {
            "iam_url": store.url,
            "s3_url": store.url,
            "ca_file": store.ca_file,
            "admin_path": ADMIN_PATH,
            "user": user,
            "bucket": BUCKET,
            "quiet_seconds": "0",
        }
        secret = site.ref(S3AccessKey.kind, **{**given, **parameters})
        place = RotationSite("trial", site.session)
        if has_value:
            site.put(secret.path, {"region": "us-east-1", **new_key(store, user)})
        return make_world(
            secret=secret,
            adapter=adapter_for(place, secret)
            if is_observed
            else S3AccessKey(place.session, "trial"),
            current=lambda: site.get(secret.path),
            works=lambda values: is_accepted(store, values),
            times_rotated=lambda: site.times_written(secret.path),
            # Who asks for the current value in these tests is a reader, too.
            consume=lambda: has_read(site, secret.path),
        )

    return make


def consumer(site: Any, world: Any, store: BareObjectStore) -> Callable[[int], Callable[[], None]]:
    """Programs that each log in to OpenBao by themselves, and list and read objects."""
    admin = site.bao.client()
    admin.sys.create_or_update_policy(
        "objects-reader", 'path "kv/data/apps/*" { capabilities = ["read"] }'
    )

    def make(number: int) -> Callable[[], None]:
        made = admin.auth.token.create(
            policies=["objects-reader"], display_name=f"consumer-{number}"
        )
        reader, sent = site.bao.client(made["auth"]["client_token"]), 0
        client: Any = None

        def request() -> None:
            nonlocal sent, client
            if sent % READ_EVERY == 0:
                answer = reader.secrets.kv.v2.read_secret_version(
                    world.secret.path, mount_point="kv", raise_on_deleted_version=True
                )
                held = answer["data"]["data"]
                client = store.client("s3", held["access_key_id"], held["secret_access_key"])
            sent += 1
            client.list_objects_v2(Bucket=BUCKET, MaxKeys=1)

        return request

    return make


def test_a_key_is_rotated_under_load_without_a_failed_request(
    site: Any,
    make_key: Any,
    make_probe: Any,
    matrix: Any,
    wish: Any,
    object_store: BareObjectStore,
    record_property: Any,
) -> None:
    world = make_key(is_observed=True, quiet_seconds="30")
    old = world.current()
    with make_probe(consumer(site, world, object_store)) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    record_property("load", f"{world.secret.kind}: {probe.load}")
    # What else lies beside the key stays there.
    assert world.current()["region"] == "us-east-1"


def test_a_key_is_rotated_once_whatever_kills_it_and_no_other_is_left(
    make_key: Any, matrix: Any, object_store: BareObjectStore, record_property: Any
) -> None:
    worlds: list[Any] = []

    def make() -> Any:
        worlds.append(make_key())
        return worlds[-1]

    edges = matrix.kill_everywhere(make)
    record_property("edges", edges)
    for world in worlds:
        held = {world.current()["access_key_id"]}
        assert key_ids(object_store, world.secret.parameters["user"]) == held


def test_a_key_that_was_there_before_is_kept_and_what_a_kill_left_is_not(
    make_key: Any, matrix: Any, object_store: BareObjectStore
) -> None:
    world = make_key()
    user, current = world.secret.parameters["user"], world.current()
    other = new_key(object_store, user)
    for _ in range(3):
        # Each time the answer is lost after the key was made.
        world.adapter.create(world.secret, 1, current)
    new = world.adapter.create(world.secret, 1, current)
    ids = {each["access_key_id"] for each in (other, current, new)}
    assert key_ids(object_store, user) == ids
    world.adapter.rollback(world.secret, new, current)
    added = new_key(object_store, user)
    world.adapter.create(world.secret, 1, current)
    assert {added["access_key_id"], other["access_key_id"]} < key_ids(object_store, user)


def test_the_first_key_of_a_user_needs_no_former_one(
    make_key: Any, matrix: Any, wish: Any, object_store: BareObjectStore
) -> None:
    world = make_key(has_value=False)
    assert matrix.rotate(world, wish()).step is Step.DONE
    assert world.works(world.current())
    user = world.secret.parameters["user"]
    assert key_ids(object_store, user) == {world.current()["access_key_id"]}


def test_a_key_that_may_not_do_what_it_is_for_gives_way_to_the_former_one(
    make_key: Any, matrix: Any, wish: Any, object_store: BareObjectStore
) -> None:
    world = make_key(allowing("s3:*", "arn:aws:s3:::another", "arn:aws:s3:::another/*"))
    old = world.current()
    state = matrix.rotate(world, wish())
    assert state.step is not Step.DONE
    assert "AccessDenied" in state.reason
    assert world.current() == old
    user = world.secret.parameters["user"]
    assert key_ids(object_store, user) == {old["access_key_id"]}


def test_the_key_that_the_run_asks_with_is_refused(
    site: Any, make_key: Any, object_store: BareObjectStore
) -> None:
    world = make_key(allowing("s3:*", "*"))
    site.put("apps-admin/itself", world.current())
    for admin_path in ("apps-admin/itself", world.secret.path):
        parameters = {**world.secret.parameters, "admin_path": admin_path}
        secret = type(world.secret)(world.secret.path, S3AccessKey.kind, "trial", parameters)
        with pytest.raises(PolicyViolation, match="this run asks IAM with a key of"):
            world.adapter.create(secret, 1, world.current())
        with pytest.raises(PolicyViolation):
            world.adapter.revoke(secret, world.current())
    assert world.works(world.current())


def test_a_user_that_does_not_have_the_key_is_refused_before_anything_is_made(
    make_key: Any, object_store: BareObjectStore
) -> None:
    world, other = make_key(), make_key()
    parameters = {**world.secret.parameters, "user": other.secret.parameters["user"]}
    secret = type(world.secret)(world.secret.path, S3AccessKey.kind, "trial", parameters)
    with pytest.raises(NotFound, match="is none of"):
        world.adapter.create(secret, 1, world.current())
    held = {other.current()["access_key_id"]}
    assert key_ids(object_store, other.secret.parameters["user"]) == held


def test_a_new_secret_is_not_asked_for_in_clear(make_key: Any, object_store: Any) -> None:
    world = make_key(iam_url=object_store.url.replace("https", "http"))
    with pytest.raises(InvalidSpec, match="Use https"):
        world.adapter.create(world.secret, 1, world.current())


def test_a_store_that_does_not_answer_is_told_without_the_key(tmp_path: Path) -> None:
    Authority(tmp_path)
    gone = IamServer("https://127.0.0.1:9", "https://127.0.0.1:9", ca_file=str(tmp_path / "ca.crt"))
    values = {"access_key_id": "ABCDEFGH", "secret_access_key": "planted-secret"}
    with pytest.raises(Unreachable, match="no answer") as caught:
        gone.answer(values)
    assert "planted-secret" not in str(caught.value)
    with pytest.raises(Unreachable), gone.session(values) as iam:
        iam.keys("app")


# --- what AWS tells and SeaweedFS does not -----------------------------------------------------


@contextmanager
def answering(directory: Path, status: int, body: str) -> Iterator[str]:
    """Answer every request alike, as the IAM of AWS does by its documentation."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            return

    Authority(directory).issue("server", "iam", "infraflows")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def last_used(at: datetime) -> str:
    return (
        '<GetAccessKeyLastUsedResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">'
        "<GetAccessKeyLastUsedResult><AccessKeyLastUsed><Region>us-east-1</Region>"
        f"<LastUsedDate>{at:%Y-%m-%dT%H:%M:%SZ}</LastUsedDate><ServiceName>s3</ServiceName>"
        "</AccessKeyLastUsed><UserName>app</UserName></GetAccessKeyLastUsedResult>"
        "</GetAccessKeyLastUsedResponse>"
    )


@pytest.mark.parametrize(("since_seconds", "verdict"), [(-60, []), (60, [False])])
def test_where_the_server_tells_the_last_use_the_old_key_in_use_holds_up_the_revocation(
    site: Any, make_key: Any, tmp_path: Path, since_seconds: int, verdict: list[bool]
) -> None:
    world = make_key(quiet_seconds="300")
    at = datetime.now(UTC) + timedelta(seconds=since_seconds)
    with answering(tmp_path, 200, last_used(at)) as url:
        parameters = {
            **world.secret.parameters,
            "iam_url": url,
            "ca_file": str(tmp_path / "ca.crt"),
        }
        secret = type(world.secret)(world.secret.path, S3AccessKey.kind, "trial", parameters)
        seen = S3AccessKey(site.session, "trial").observe(secret, {}, world.current())
    assert [each.is_on_new for each in seen] == verdict


def test_a_user_with_as_many_keys_as_it_may_have_is_told_what_to_do(tmp_path: Path) -> None:
    body = (
        '<ErrorResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><Error>'
        "<Type>Sender</Type><Code>LimitExceeded</Code><Message>Cannot exceed quota"
        "</Message></Error></ErrorResponse>"
    )
    values = {"access_key_id": "ABCDEFGH", "secret_access_key": "planted-secret"}
    with answering(tmp_path, 409, body) as url:
        full = IamServer(url, url, ca_file=str(tmp_path / "ca.crt"))
        with (
            pytest.raises(QuotaExceeded, match="Remove one that nobody uses"),
            full.session(values) as iam,
        ):
            iam.create("app")
