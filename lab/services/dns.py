"""BIND, the name server of the lab's zone, with dynamic updates signed by TSIG.

What it promises: the zone's first content is written once; afterwards only updates change it. What
it refuses: to resolve anything else, and to forward: nothing of the lab leaves the machine.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype

from lab.layout import DNS_PORT, GATEWAY, NODE_ADDRESSES, ZONE, Layout
from lab.services.credentials import credential
from lab.services.files import owned_directory, write_if_changed
from lab.services.namespace import inside
from lab.services.service import Launch, Service

USER = "bind"

_CONFIGURATION = """\
include "{directory}/tsig.key";
options {{
    directory "{directory}/zones";
    pid-file "{run}/named.pid";
    session-keyfile "{run}/session.key";
    lock-file none;
    listen-on port {port} {{ {address}; }};
    listen-on-v6 {{ none; }};
    recursion no;
    allow-query {{ any; }};
    allow-transfer {{ key "{key}"; }};
    notify no;
    dnssec-validation no;
    empty-zones-enable no;
}};
controls {{ }};
zone "{zone}" {{
    type primary;
    file "{zone}.zone";
    update-policy {{ grant {key} zonesub ANY; }};
}};
"""

_KEY = """\
key "{key_name}" {{
    algorithm {algorithm};
    secret "{secret}";
}};
"""


def _first_zone() -> str:
    records = {"ns": GATEWAY, "openbao": GATEWAY, "site": GATEWAY, **NODE_ADDRESSES}
    lines = [f"{name}\tIN A\t{address}" for name, address in records.items()]
    header = (
        "$TTL 60\n"
        f"@\tIN SOA\tns.{ZONE}. hostmaster.{ZONE}. ( 1 3600 600 86400 60 )\n"
        f"@\tIN NS\tns.{ZONE}.\n"
    )
    return header + "\n".join(lines) + "\n"


def _run(layout: Layout) -> Path:
    return layout.run_directory / "dns"


def prepare(layout: Layout) -> None:
    directory = layout.dns_directory
    directory.mkdir(parents=True, exist_ok=True)
    zones = owned_directory(directory / "zones", USER, 0o755)
    owned_directory(_run(layout), USER, 0o755)
    key = credential(layout, "dns")
    key_file = directory / "tsig.key"
    write_if_changed(key_file, _KEY.format(**key), mode=0o640)
    shutil.chown(key_file, "root", USER)
    write_if_changed(
        directory / "named.conf",
        _CONFIGURATION.format(
            directory=directory,
            run=_run(layout),
            port=DNS_PORT,
            address=GATEWAY,
            zone=ZONE,
            key=key["key_name"],
        ),
    )
    zone_file = zones / f"{ZONE}.zone"
    if not zone_file.exists():
        # A journal without its zone belongs to a zone that was lost: it cannot be replayed.
        (zones / f"{ZONE}.zone.jnl").unlink(missing_ok=True)
        write_if_changed(zone_file, _first_zone())
        shutil.chown(zone_file, USER, USER)


def launch(layout: Layout) -> Launch:
    return Launch(
        command=[
            "named",
            "-g",
            "-n",
            "1",
            "-u",
            USER,
            "-c",
            str(layout.dns_directory / "named.conf"),
        ]
    )


def is_healthy(layout: Layout) -> str | None:
    query = dns.message.make_query(f"pve1.{ZONE}", dns.rdatatype.A)
    try:
        reply = dns.message.from_wire(_ask(layout, query.to_wire()))
    except (OSError, dns.exception.DNSException) as error:
        return f"no answer on {GATEWAY}:{DNS_PORT} ({type(error).__name__})"
    if reply.rcode() != dns.rcode.NOERROR or not reply.answer:
        return f"it answers {dns.rcode.to_text(reply.rcode())} for a record of its own"
    return None


def _ask(layout: Layout, question: bytes) -> bytes:
    """One datagram there and back; `dns.query` would load an HTTP client for it."""
    with inside(layout.namespace_path), socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.settimeout(1.0)
        asking.connect((GATEWAY, DNS_PORT))
        asking.send(question)
        return asking.recv(4096)


SERVICE = Service(
    name="dns",
    summary=f"BIND: zone {ZONE}",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    programs=("named",),
)
