"""A DNS zone that takes updates signed with TSIG (RFC 2136, RFC 8945).

Promises that names are set in one atomic update, that only what differs is sent, and that every
change is read back from the server itself; that a swap of record sets happens only if all of them
are as they were read. Refuses unsigned updates and answers, and names outside the zone.
"""

from __future__ import annotations

import binascii
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.tsig
import dns.tsigkeyring
import dns.update
from prefect.blocks.core import Block
from pydantic import Field

from blocks.documents import document
from domain.errors import (
    Conflict,
    InvalidSpec,
    NotFound,
    PermanentError,
    Unauthorized,
    Unreachable,
)

QUERY_TIMEOUT_SECONDS = 5.0
TIME_TO_LIVE_SECONDS = 60
ADDRESS = dns.rdatatype.A
TEXT = dns.rdatatype.TXT
_CHANGED_MEANWHILE = (
    dns.rcode.YXDOMAIN,
    dns.rcode.YXRRSET,
    dns.rcode.NXRRSET,
    dns.rcode.NXDOMAIN,
)
"""Answers by which a server says that a prerequisite of an update does not hold."""


@dataclass(frozen=True)
class UpdateKey:
    """A TSIG key; never printed."""

    name: str
    algorithm: str
    secret: str = field(repr=False)

    @classmethod
    def from_values(cls, values: Mapping[str, str], path: str) -> UpdateKey:
        """Return the key in the values of an OpenBao path.

        Raises:
            InvalidSpec: values are missing.
        """
        wanted = ("key_name", "algorithm", "secret")
        missing = [name for name in wanted if not values.get(name)]
        if missing:
            raise InvalidSpec(
                f"the secret {path}", [f"{name}: missing. Write it to OpenBao" for name in missing]
            )
        return cls(values["key_name"], values["algorithm"], values["secret"])


@dataclass(frozen=True)
class RecordSwap:
    """A record set that becomes another one if it is what it was read as."""

    name: str
    kind: Literal["A", "TXT"]
    before: tuple[str, ...]
    after: tuple[str, ...]
    is_new_name: bool = False
    """Nothing at all, of whatever kind, may be at the name yet."""


class DnsZone(Block):
    """A zone on the name server that is its primary."""

    _block_type_name = "DNS zone"
    _block_type_slug = "infraflows-dns"
    _description = "A zone whose primary name server takes updates signed with a TSIG key."

    server: str = Field(description="Address of the zone's primary name server.")
    port: int = Field(default=53, ge=1, le=65535, description="Port of the name server.")
    zone: str = Field(description="The zone, as lab.example.org.")
    credential: str = Field(description="OpenBao path of key_name, algorithm and secret.")

    # --- reading -----------------------------------------------------------------------------

    def _origin(self) -> dns.name.Name:
        return dns.name.from_text(self.zone)

    def _absolute(self, name: str) -> dns.name.Name:
        """Return a full name below the zone; `name` is relative unless it ends with a dot."""
        try:
            full = dns.name.from_text(name, self._origin())
        except dns.exception.DNSException:
            raise InvalidSpec("the names", [f"{name!r}: is not a DNS name. Correct it"]) from None
        if not full.is_subdomain(self._origin()):
            raise InvalidSpec(
                "the names", [f"{name}: is outside the zone {self.zone}. Use names below it"]
            )
        return full

    @contextmanager
    def _explained(self, act: str) -> Iterator[None]:
        failed = f"Unable to {act} at the name server {self.server}:{self.port}"
        try:
            yield
        except (dns.tsig.PeerError, dns.tsig.BadSignature, dns.message.UnknownTSIGKey):
            raise Unauthorized(
                f"{failed}: the TSIG key was refused. Renew {self.credential} in OpenBao and "
                "compare the clocks."
            ) from None
        except (dns.exception.Timeout, OSError, EOFError) as error:
            raise Unreachable(
                f"{failed}: no answer ({type(error).__name__}). Check the server and the network."
            ) from error
        except dns.exception.DNSException as error:
            raise PermanentError(
                f"{failed}: the answer cannot be used ({type(error).__name__}). Check the server."
            ) from error

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        """Yield one TCP connection: an answer that got lost is told from one that never came."""
        with self._explained("connect"):
            open_socket = socket.create_connection(
                (self.server, self.port), timeout=QUERY_TIMEOUT_SECONDS
            )
        with open_socket:
            # dnspython waits by itself, on a socket that does not.
            open_socket.setblocking(False)
            yield open_socket

    def _ask(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, connection: socket.socket
    ) -> dns.message.Message:
        query = dns.message.make_query(name, kind)
        query.flags &= ~dns.flags.RD
        with self._explained(f"look up {name}"):
            answer = dns.query.tcp(query, self.server, QUERY_TIMEOUT_SECONDS, sock=connection)
        if answer.rcode() in (dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTAUTH):
            code = dns.rcode.to_text(answer.rcode())
            raise NotFound(
                f"Unable to look up {name}: the name server answers {code}. "
                f"Check that it is the primary of {self.zone}."
            )
        return answer

    def serial(self) -> int:
        """Return the zone's serial number.

        Raises:
            NotFound: the server does not have the zone. Unreachable: it does not answer.
        """
        with self._connection() as connection:
            answer = self._ask(self._origin(), dns.rdatatype.SOA, connection)
        for rrset in answer.answer:
            if rrset.rdtype == dns.rdatatype.SOA and rrset.name == self._origin():
                return int(next(iter(rrset)).serial)
        raise NotFound(
            f"Unable to find the zone {self.zone}: the name server {self.server} does not have it. "
            "Create the zone."
        )

    def lookup(self, name: str) -> list[str]:
        """Return the addresses of a name, sorted; empty when it has none."""
        return self.lookup_all([name]).get(name, [])

    def lookup_all(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the addresses, sorted, of those of the names that have any."""
        found: dict[str, list[str]] = {}
        with self._connection() as connection:
            for name in names:
                full = self._absolute(name)
                answer = self._ask(full, ADDRESS, connection)
                addresses = [
                    str(item.address)
                    for rrset in answer.answer
                    if rrset.rdtype == ADDRESS and rrset.name == full
                    for item in rrset
                ]
                if addresses:
                    found[name] = sorted(addresses, key=ipaddress.ip_address)
        return found

    def texts(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the texts, sorted, of those of the names that have any."""
        found: dict[str, list[str]] = {}
        with self._connection() as connection:
            for name in names:
                full = self._absolute(name)
                answer = self._ask(full, TEXT, connection)
                texts = [
                    b"".join(item.strings).decode(errors="replace")
                    for rrset in answer.answer
                    if rrset.rdtype == TEXT and rrset.name == full
                    for item in rrset
                ]
                if texts:
                    found[name] = sorted(texts)
        return found

    # --- writing -----------------------------------------------------------------------------

    def swap(self, swaps: Sequence[RecordSwap], key: UpdateKey) -> None:
        """Change record sets in one update: all of them, or none.

        Raises:
            Conflict: one of them is not what it was read as, or a new name is in use.
        """
        if not swaps:
            return
        update = self._update(key)
        for each in swaps:
            name, kind = self._absolute(each.name), dns.rdatatype.from_text(each.kind)
            if each.is_new_name:
                update.absent(name)
            elif each.before:
                update.present(name, each.kind, *_presented(each.kind, each.before))
            else:
                update.absent(name, kind)
            update.delete(name, kind)
            for text in _presented(each.kind, each.after):
                update.add(name, TIME_TO_LIVE_SECONDS, kind, text)
        self._send(update, "change names")

    def set_addresses(self, addresses: Mapping[str, str], key: UpdateKey) -> list[str]:
        """Make each name have exactly its address; return the names that had not.

        Raises:
            Conflict: another writer changed a name at the same time.
        """
        wanted = {name: str(ipaddress.IPv4Address(text)) for name, text in addresses.items()}
        before = self.lookup_all(wanted)
        differing = [name for name, address in wanted.items() if before.get(name) != [address]]
        if not differing:
            return []
        update = self._update(key)
        for name in differing:
            update.replace(self._absolute(name), TIME_TO_LIVE_SECONDS, ADDRESS, wanted[name])
        self._send(update, "set names")
        after = self.lookup_all(differing)
        wrong = [name for name in differing if after.get(name) != [wanted[name]]]
        if wrong:
            raise Conflict(
                f"Unable to confirm {', '.join(wrong)} in {self.zone}: other addresses were read "
                "back than were written. Find the other writer, then run again."
            )
        return differing

    def remove(self, names: Iterable[str], key: UpdateKey) -> list[str]:
        """Remove the addresses of names; return those that had any. Absent names are fine."""
        found = list(self.lookup_all(names))
        if not found:
            return []
        update = self._update(key)
        for name in found:
            update.delete(self._absolute(name), ADDRESS)
        self._send(update, "remove names")
        left = self.lookup_all(found)
        if left:
            raise Conflict(
                f"Unable to confirm the removal of {', '.join(left)} from {self.zone}: they were "
                "read back. Find the other writer, then run again."
            )
        return found

    def _update(self, key: UpdateKey) -> dns.update.UpdateMessage:
        try:
            ring = dns.tsigkeyring.from_text({key.name: key.secret})
        except (binascii.Error, dns.exception.DNSException):
            raise InvalidSpec(
                f"the secret {self.credential}",
                ["secret: is not base64. Write it to OpenBao again"],
            ) from None
        return dns.update.UpdateMessage(
            self._origin(), keyring=ring, keyalgorithm=dns.name.from_text(key.algorithm)
        )

    def _send(self, update: dns.update.UpdateMessage, act: str) -> None:
        with self._explained(f"{act} of {self.zone}"):
            answer = dns.query.tcp(update, self.server, QUERY_TIMEOUT_SECONDS, self.port)
        code = answer.rcode()
        if code == dns.rcode.NOERROR:
            return
        failed = (
            f"Unable to {act} of {self.zone}: the name server answers {dns.rcode.to_text(code)}"
        )
        if code in (dns.rcode.NOTAUTH, dns.rcode.REFUSED, dns.rcode.BADSIG, dns.rcode.BADKEY):
            raise Unauthorized(f"{failed}. Give the key of {self.credential} the right to update.")
        if code == dns.rcode.SERVFAIL:
            raise Unreachable(f"{failed}. Look at its log if it stays so.")
        if code in _CHANGED_MEANWHILE:
            raise Conflict(
                f"{failed}: a name is in use or was changed meanwhile. Find the other writer, "
                "then run again."
            )
        raise PermanentError(f"{failed}. Look at its log.")


def _presented(kind: str, values: Iterable[str]) -> list[str]:
    """Return values as a zone file writes them."""
    if kind == "A":
        return [str(ipaddress.IPv4Address(value)) for value in values]
    return [dns.rdata.from_text("IN", kind, _quoted(value)).to_text() for value in values]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def dns_zone(environment: str) -> DnsZone:
    """Return the zone of an environment, by its block document.

    Raises:
        NotFound: `infraflows setup` has not been run for this environment.
    """
    return document(DnsZone, environment)
