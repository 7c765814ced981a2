"""What a visitor sees first: each service of the demo looked up and talked to, and more."""

from __future__ import annotations

import http.client
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
    for name, component in components().items():
        if component.demo_tour and name in addresses:
            load_object(component.demo_tour)(addresses[name], out)
    if "status" in addresses:
        print(f"status page: {addresses['status']}", file=out)
    print(f"site file: {plan.directory / 'site.toml'}; stop with Ctrl-C", file=out, flush=True)
