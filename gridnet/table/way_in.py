"""
How a client gets to a server that it cannot reach by itself: the values that the dispatcher
exchanges with the relay and the launcher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import frozen

from gridnet.table.server_info import ServerInfo


@frozen
class ConnectionPoint:
    """Where a client must connect, and what it must say first."""

    host: str  #: dotted IPv4 address
    port: int  #: 1..65535
    ticket: int  #: 32 bits; 0: the client sends none
    secure: bool = False  #: a TLS handshake follows the ticket


@frozen
class WayInRequest:
    """One client's wish for one relayed connection."""

    service: str  #: service name as in the table
    server: ServerInfo  #: the real (hidden) server
    client: str  #: IP address text of the client
    #: None: not in firewall mode; empty: regular ports only (``0``); ports: fallback ports that
    #: the client can use
    fallback_ports: frozenset[int] | None = None
    firewall_mode: bool = False
    server_ticket: int = 0  #: sent to the server first, when not 0
    #: where to connect instead, and with what ticket: the program behind *server* waits there
    launched: ConnectionPoint | None = None


@frozen
class LaunchRequest:
    """One run of the program behind a service."""

    service: str  #: service name as in the table
    server: ServerInfo  #: its entry
    command: str  #: launcher information
    client: str  #: IP address text of the client
    platform: str = ""  #: client platform; empty: unknown
    method: str = "POST"  #: HTTP method
    path: str = ""  #: path of the request's target
    query: str = ""  #: query of the request's target, without ``service``
    headers: tuple[tuple[str, str], ...] = ()  #: request headers in order
    server_name: str = ""  #: address that the client asked
    server_port: int = 0
    protocol: str = "HTTP/1.0"
    request_id: str = ""  #: for the log
    environment: Mapping[str, str] = {}  #: more variables for the program


class ProgramOutput(Protocol):
    """Is told what a running program does; the launcher calls it from the reactor."""

    def output_received(self, data: bytes) -> None:
        """The program wrote *data*."""

    def input_paused(self) -> None:
        """The program reads too slowly: write no more until :meth:`input_resumed`."""

    def input_resumed(self) -> None:
        """The program has taken what there was."""

    def program_ended(self, status: int | None, reason: str, http_status: int = 502) -> None:
        """
        No more output.

        :param status: exit status; None when a signal or a limit ended it.
        :param reason: text for log and ``Dispatcher-Failures``; empty when all went well.
        :param http_status: of the reply, when it did not go well and nothing was written.
        """


class RunningProgram(Protocol):
    """A program whose standard input is ours to write."""

    pid: int

    def write(self, data: bytes) -> None:
        """Add *data* to its standard input."""

    def end_input(self) -> None:
        """No more input."""

    def pause_output(self) -> None:
        """Stop reading its output until :meth:`resume_output`."""

    def resume_output(self) -> None:
        """Read its output again."""

    def abandon(self) -> None:
        """Nobody wants the output any more: close its input, then end it."""


@frozen
class PageRequest:
    """A request for a page beside the dispatcher."""

    method: str  #: HTTP method
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()  #: in order; names in lower case
    body: bytes = b""  #: its first octets, as many as the dispatcher keeps for a page
    client: str = ""  #: IP address text


@frozen
class PageReply:
    """What the page says."""

    body: bytes
    content_type: str = "text/plain"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()  #: more of them
