"""Who may be let through to what (docs/protocols/firewall.rst, 5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Any

from attrs import Attribute, field, frozen

from gridnet.errors import TableError
from gridnet.firewall.ports import parse_ports
from gridnet.table.address import address_number
from gridnet.table.address_range import AddressRange, parse_range

ALLOW = "allow"
PUBLIC = "public"
DENY = "deny"


@frozen
class _Target:
    """Addresses, and ports at them."""

    addresses: AddressRange | None  #: None: any
    ports: frozenset[int] | None  #: None: any

    def covers(self, host: tuple[int, int] | None, port: int) -> bool:
        """Whether *host*:*port* is one of them."""
        if self.ports is not None and port not in self.ports:
            return False
        return self.addresses is None or _within(self.addresses, host)


def _within(addresses: AddressRange, address: tuple[int, int] | None) -> bool:
    return (
        address is not None
        and addresses.version == address[0]
        and addresses.first <= address[1] <= addresses.last
    )


def _parse_target(text: str) -> _Target:
    where, ports = text, ""
    bracket = re.fullmatch(r"\[([^]]*)\](?::(.*))?", text)
    if bracket is not None:
        where, ports = bracket[1], bracket[2] or ""
    elif text.count(":") == 1:
        where, _, ports = text.partition(":")
    return _Target(
        None if where == "*" else parse_range(where),
        frozenset(parse_ports(ports)) if ports else None,
    )


def _one_of(*words: str) -> Any:
    def validate(_: object, attribute: Attribute[Any], value: str) -> None:
        if value not in words:
            raise ValueError(f"expected {' or '.join(words)}, found {value!r}")

    return validate


@frozen
class Rule:
    """
    One of ``[[firewall.rules]]``: applies when each of its lists that is not empty has a match.
    """

    #: ``allow``; ``deny``; ``public``: only to servers that the table offers to the public
    action: str = field(validator=_one_of(ALLOW, PUBLIC, DENY))
    clients: tuple[str, ...] = ()  #: address ranges
    services: tuple[str, ...] = ()  #: masks of service names
    targets: tuple[str, ...] = ()  #: ``range``, ``range:ports`` or ``*:ports``, of the server

    _clients: tuple[AddressRange, ...] = field(init=False, repr=False, eq=False)
    _services: tuple[re.Pattern[str], ...] = field(init=False, repr=False, eq=False)
    _targets: tuple[_Target, ...] = field(init=False, repr=False, eq=False)

    @_clients.default
    def _read_clients(self) -> tuple[AddressRange, ...]:
        return tuple(map(_read(parse_range), self.clients))

    @_services.default
    def _read_services(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(translate(mask.lower())) for mask in self.services)

    @_targets.default
    def _read_targets(self) -> tuple[_Target, ...]:
        return tuple(map(_read(_parse_target), self.targets))

    def applies(self, client: str, service: str, host: str, port: int) -> bool:
        """Whether this rule decides about *client*'s way to *service* at *host*:*port*."""
        if self._clients:
            address = address_number(client)
            if not any(_within(each, address) for each in self._clients):
                return False
        if self._services:
            name = service.lower()
            if not any(mask.fullmatch(name) for mask in self._services):
                return False
        if self._targets:
            address = address_number(host)
            return any(target.covers(address, port) for target in self._targets)
        return True


def _read(parse: Any) -> Any:
    """*parse*, whose complaints a configuration can report."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except TableError as error:
            raise ValueError(str(error)) from None

    return read


def verdict(
    rules: Sequence[Rule], client: str, service: str, host: str, port: int, offered: bool
) -> str:
    """
    Whether *client* may be let through.

    The first rule that applies decides; without one, only what is *offered* is reached, so that
    nobody gets to an arbitrary place.

    :param offered: the table offers this server to this client.
    :returns: empty: yes; else why not, for the client.
    """
    action = PUBLIC
    for rule in rules:
        if rule.applies(client, service, host, port):
            action = rule.action
            break
    if action == DENY:
        return "Not allowed by this site's rules"
    if action == PUBLIC and not offered:
        return "This server is not open to the public"
    return ""
