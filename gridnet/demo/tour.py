"""What a visitor sees first: each service of the demo looked up and talked to, and more."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import urlsplit

from gridnet.component import components, load_object
from gridnet.demo.plan import DemoPlan

_SERVICES = (
    ("Echo", b"hello, echo\n"),
    ("Upper", b"hello, filter\n"),
    ("Hello", b""),
)
_TIMEOUT_SECONDS = 10.0


def tour(addresses: Mapping[str, Any], plan: DemoPlan, out: IO[str]) -> None:
    """
    Ask the dispatcher at *addresses* for each demo service, talk to it, then let components show
    what they do; blocking.

    :raises OSError: the dispatcher does not answer.
    """
    address = urlsplit(addresses["dispatch"]["http"])
    for service, payload in _SERVICES:
        target = f"/Service/dispd.cgi?service={service}&address=localhost&platform=demo"
        connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=_TIMEOUT_SECONDS
        )
        connection.request("GET", target, headers={"Dispatch-Mode": "INFORMATION_ONLY"})
        reply = connection.getresponse()
        reply.read()
        found = [v for k, v in reply.getheaders() if k.lower().startswith("server-info-")]
        print(f"who serves {service}?  {reply.status} {found}", file=out)
        connection.request("POST", target, body=payload, headers={"Client-Mode": "STATELESS_ONLY"})
        reply = connection.getresponse()
        print(f"{service}({payload!r}) -> {reply.status} {reply.read()!r}", file=out)
        connection.close()
    if "firewall" in addresses:
        _show_ticket(address.hostname or "", address.port, out)
    for name, component in components().items():
        if component.demo_tour and name in addresses:
            load_object(component.demo_tour)(addresses[name], out)
    if "status" in addresses:
        print(f"status page: {addresses['status']}", file=out)
    print(f"site file: {plan.directory / 'site.toml'}; stop with Ctrl-C", file=out, flush=True)


def _show_ticket(host: str, port: int | None, out: IO[str]) -> None:
    """Talk to a server as an outside client does: through the relay, with a ticket."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    headers = {"Client-Mode": "STATEFUL_CAPABLE", "Accepted-Server-Types": "FIREWALL"}
    connection.request("GET", "/Service/dispd.cgi?service=Echo", headers=headers)
    reply = connection.getresponse()
    reply.read()
    point = reply.getheader("Connection-Info", "")
    connection.close()
    words = point.split()
    if len(words) != 3:
        print(f"no way through the relay to Echo: {reply.status}", file=out)
        return
    relay, relay_port, ticket = words
    with socket.create_connection((relay, int(relay_port)), _TIMEOUT_SECONDS) as through:
        through.sendall(bytes.fromhex(ticket.rstrip("$")) + b"hello, ticket\n")
        print(f"Echo through {point} -> {through.recv(1000)!r}", file=out)
