"""A table and a dispatcher, and what they say to requests."""

from __future__ import annotations

import random
import re
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch.dispatcher import Answer, Dispatcher
from gridnet.dispatch.request import DispatchRequest
from gridnet.dispatch.wire import parse_request
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import Entry, ServiceTable
from gridnet.table.server_info import parse

NOW = 1_000_000.0
FIRST = "STANDALONE 10.1.1.1:1 L=no R=1000.00 S=no T=1795309516"
INSIDE, OUTSIDE = "10.0.0.9", "192.0.2.1"
INFO = {"Dispatch-Mode": "INFORMATION_ONLY", "Client-Mode": "STATEFUL_CAPABLE"}


def entry(text: str, service: str = "svc", **changes: Any) -> Entry:
    """A static entry of the descriptor *text*; rate 1000, T 30 and L=no unless it says more."""
    for tag, default in ((" L=", " L=no"), (" R=", " R=1000"), (" T=", " T=30")):
        if tag not in text:
            text += default
    return evolve(Entry(service, parse(text), owner="10.0.0.1", static=True), **changes)


class ModelCase(SynchronousTestCase):
    """A table, a dispatcher, and requests to it."""

    def setUp(self) -> None:
        self.table = ServiceTable()
        self.dispatcher = Dispatcher(
            self.table, AddressRanges.from_texts(["10/8"]), random.Random(11)
        )

    def put(self, *texts: str, service: str = "svc", **changes: Any) -> list[Entry]:
        """Put entries of *texts* into the table."""
        entries = [entry(text, service, **changes) for text in texts]
        for each in entries:
            self.table.put(each)
        return entries

    def request(self, service: str = "svc", **headers: str) -> DispatchRequest:
        """A request of a present-day client (underscores in names are dashes)."""
        headers.setdefault("Client_Revision", "7.0")
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return parse_request(
            "GET",
            f"/Service/dispd.cgi?service={service}".encode(),
            [(name.encode(), value.encode()) for name, value in pairs],
        )

    def answer(
        self, service: str = "svc", peer: str = INSIDE, now: float = NOW, **headers: str
    ) -> Answer:
        """The answer to a look-up."""
        wanted = {"Dispatch_Mode": "INFORMATION_ONLY", "Client_Mode": "STATEFUL_CAPABLE"}
        return self.dispatcher.answer(self.request(service, **{**wanted, **headers}), peer, now)

    def infos(
        self, service: str = "svc", peer: str = INSIDE, now: float = NOW, **headers: str
    ) -> list[str]:
        """The descriptors of the answer to a look-up."""
        lines = self.answer(service, peer, now, **headers).lines.decode()
        return re.findall(r"^Server-Info-\d+: (.*)\r$", lines, re.MULTILINE)

    def ports(self, **headers: Any) -> set[int]:
        """The ports of the servers of the answer to a look-up."""
        headers.setdefault("Server_Count", "ALL")
        return {int(re.findall(r":(\d+)", text)[0]) for text in self.infos(**headers)}

    def targets(self, peer: str = INSIDE, **headers: str) -> list[int]:
        """The ports of the servers that a connection request may be passed to."""
        headers.setdefault("Client_Mode", "STATELESS_ONLY")
        found = self.dispatcher.targets(self.request(**headers), peer, NOW)
        return [each.info.port for each in found.entries]
