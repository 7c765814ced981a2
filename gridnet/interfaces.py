"""
The seams between components, and those that a user may replace.

Components never import each other's protocol files.  One that offers something registers it
under an interface of this file (:meth:`gridnet.site.Site.provide`); one that wants it asks
(:meth:`gridnet.site.Site.find`) and copes when there is none.
"""

from __future__ import annotations

from zope.interface import Attribute, Interface


class ITicketOffice(Interface):
    """Lets an outside client through to one server (provided by the firewall relay)."""

    def reserve(request: object) -> object:
        """
        Reserve one connection.

        :param request: a :class:`gridnet.table.way_in.WayInRequest`.
        :returns: ``Deferred`` of a :class:`gridnet.table.way_in.ConnectionPoint`.
        :raises gridnet.errors.TicketError: (in the Deferred) refused; the text is for the client.
        """


class IProgramLauncher(Interface):
    """Runs the program behind a service that has launcher information (the launcher)."""

    def listen_once(request: object) -> object:
        """
        Open a one-shot port for a stateful service.

        :param request: a :class:`gridnet.table.way_in.LaunchRequest`.
        :returns: ``Deferred`` of a :class:`gridnet.table.way_in.ConnectionPoint`.
        :raises gridnet.errors.LaunchError: (in the Deferred) it cannot be.
        """

    def run(request: object, output: object) -> object:
        """
        Start a stateless program.

        :param request: a :class:`gridnet.table.way_in.LaunchRequest`.
        :param output: a :class:`gridnet.table.way_in.ProgramOutput`, told what the program writes.
        :returns: a :class:`gridnet.table.way_in.RunningProgram`, to write the request body to.
        :raises gridnet.errors.LaunchError: it cannot be started.
        """


class IDispatcherPage(Interface):
    """
    A page that clients expect beside the dispatcher; registered under its path as the name.

    The dispatcher looks it up by the path of the request, before it dispatches.
    """

    def respond(request: object) -> object:
        """
        Answer one request.

        :param request: a :class:`gridnet.table.way_in.PageRequest`.
        :returns: ``Deferred`` of a :class:`gridnet.table.way_in.PageReply`.
        """


class IConfigurationHolder(Interface):
    """Holds a configuration that can be read anew while the site runs."""

    def reload() -> object:
        """
        Read the configuration anew as one atomic step.

        :returns: ``Deferred`` of a tuple of :class:`gridnet.errors.Fault`; empty: in force.
        """


class IObjectSource(Interface):
    """A list of objects that mirrors can follow."""

    object_type = Attribute("str: name of the list, e.g. ``services``")

    def snapshot() -> object:
        """The list now: ``Mapping[str, Mapping[str, object]]``, key -> attributes."""

    def subscribe(changed: object) -> object:
        """
        Call ``changed(key, attributes | None)`` at each change (``None``: deleted).

        :returns: a callable that ends the subscription.
        """
