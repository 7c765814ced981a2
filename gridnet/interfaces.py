"""
The seams between components, and those that a user may replace.

Components never import each other's protocol files.  One that offers something registers it
under an interface of this file (:meth:`gridnet.site.Site.provide`); one that wants it asks
(:meth:`gridnet.site.Site.find`) and copes when there is none.
"""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface

from gridnet.table.way_in import (
    LaunchRequest,
    PageRequest,
    ProgramOutput,
    WayInRequest,
)


class ITicketOffice(Interface):
    """Lets an outside client through to one server (provided by the firewall relay)."""

    def reserve(request: WayInRequest) -> object:
        """
        Reserve one connection.

        :returns: ``Deferred`` of a :class:`gridnet.table.way_in.ConnectionPoint`.
        :raises gridnet.errors.TicketError: (in the Deferred) refused; the text is for the client.
        """


class IProgramLauncher(Interface):
    """Runs the program behind a service that has launcher information (the launcher)."""

    def listen_once(request: LaunchRequest) -> object:
        """
        Open a one-shot port for a stateful service.

        :returns: ``Deferred`` of a :class:`gridnet.table.way_in.ConnectionPoint`.
        :raises gridnet.errors.LaunchError: (in the Deferred) it cannot be.
        """

    def run(request: LaunchRequest, output: ProgramOutput) -> object:
        """
        Start a stateless program.

        :param request: a :class:`gridnet.table.way_in.LaunchRequest`.
        :param output: a :class:`gridnet.table.way_in.ProgramOutput`, told what the program writes.
        :returns: a :class:`gridnet.table.way_in.RunningProgram`, to write the request body to.
        :raises gridnet.errors.LaunchError: it cannot be started.
        """


class IPenaltyBox(Interface):
    """Remembers clients that misbehave (provided by the firewall relay)."""

    def note_unused(client: str, service: str) -> None:
        """*client*, an IP address text, asked for a connection to *service* and never made it."""

    def refusal(client: str) -> str:
        """Why *client* is refused now, for the client; empty: it is not."""


class IDispatcherPage(Interface):
    """
    A page that clients expect beside the dispatcher; registered under its path as the name.

    The dispatcher looks it up by the path of the request, before it dispatches.
    """

    def respond(request: PageRequest) -> object:
        """
        Answer one request.

        :returns: ``Deferred`` of a :class:`gridnet.table.way_in.PageReply`.
        """


class IConfigurationHolder(Interface):
    """Holds a configuration that can be read anew while the site runs."""

    def reload() -> object:
        """
        Read the configuration anew as one atomic step.

        :returns: ``Deferred`` of a tuple of :class:`gridnet.errors.Fault`; empty: in force.
        """


class ITableFollower(Interface):
    """Other processes that answer from copies of the site's table."""

    def settled() -> object:
        """
        Wait for them.

        :returns: ``Deferred`` that fires when all answer from the table as it is at the call.
        """


class IObjectSource(Interface):
    """A list of objects that mirrors can follow."""

    object_type = Attribute("str: name of the list, e.g. ``services``")

    def snapshot() -> object:
        """The list now: ``Mapping[str, Mapping[str, object]]``, key -> attributes."""

    def subscribe(changed: Any) -> object:
        """
        Call ``changed(key, attributes | None)`` at each change (``None``: deleted).

        :returns: a callable that ends the subscription.
        """


class IListMaster(Interface):
    """The master of the lists of this process (provided by the event mirror)."""

    def connector() -> object:
        """A way to it for a mirror in this process, as :class:`gridnet.mirror.follow.MirrorService`
        takes it."""


class IJobEvents(Interface):
    """Stores job events and tells of them (provided by the LB proxy)."""

    def log(line: bytes) -> object:
        """
        Store one event line (docs/protocols/lbproxy.rst, "Event lines").

        :returns: ``Deferred`` of a :class:`gridnet.lbproxy.frames.Reply`, once it is durable.
        """

    def subscribe(
        received: Any, wanted: Any = None, after: int | None = None, ended: Any = None
    ) -> object:
        """
        Follow the event stream inside the process.

        :param received: called with a sequence of :class:`gridnet.lbproxy.ledger.StoredEvent`.
        :param wanted: a :class:`gridnet.lbproxy.stream.EventFilter`.
        :param after: position of the last event that is known; None: from now on.
        :param ended: called with a reason when there will be no more.
        :returns: a subscription with ``cursor`` and ``cancel()``.
        """
