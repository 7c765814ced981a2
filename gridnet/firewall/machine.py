"""
The life of one client's connection to the relay, from its first octet to the end
(docs/protocols/firewall.rst, 3).

The machine decides; its :class:`Hands` do.  Octets under way between client and server are none
of its business: it hears when that begins and when it is over.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol, cast, runtime_checkable

from attrs import define
from automat import TypeMachineBuilder

from gridnet.quick_machine import compiled


class Wait(Enum):
    """What a connection can be waiting for; each has its own limit in the configuration."""

    # Each is one object; Enum's own goes through its name, in Python, for every look-up.
    __hash__ = object.__hash__

    SILENCE = "silence"  #: the first octet
    PARTIAL = "partial"  #: the rest of the opening octets
    RECORD = "record"  #: the rest of a control record
    SERVER = "server"  #: the connection to the server
    DRAIN = "drain"  #: the client to hang up after the last reply


class Leg(Protocol):
    """What can happen to a connection."""

    def began_to_speak(self) -> None:
        """The client sent octets that do not tell yet what it wants."""

    def ticket_presented(self) -> None:
        """The client presented a ticket."""

    def control_opened(self) -> None:
        """The client, whom we trust, wants to ask for a ticket."""

    def control_requested(self) -> None:
        """The client's control record is whole."""

    def made_no_sense(self) -> None:
        """The client's control record is none."""

    def port_checked(self) -> None:
        """The client only wants to know whether this port answers."""

    def stream_ended(self) -> None:
        """The client sends no more; it may still read."""

    def connection_lost(self) -> None:
        """The client is gone."""

    def time_ran_out(self) -> None:
        """What was waited for did not come in time."""

    def passage_granted(self) -> None:
        """The ticket is good, or the request is and keeps this connection."""

    def passage_denied(self) -> None:
        """The ticket is not good, or the request is refused."""

    def point_reserved(self) -> None:
        """The control request is answered with a ticket for somebody's other connection."""

    def server_reached(self) -> None:
        """The server took our connection."""

    def server_failed(self) -> None:
        """The server did not."""

    def relay_ended(self) -> None:
        """Client and server have nothing more to say to each other."""

    def revoked(self) -> None:
        """The connection must end now: an operator, a limit, or the end of the service."""


@runtime_checkable
class Hands(Protocol):
    """What the machine has done for it."""

    def wait(self, for_what: Wait) -> None:
        """Say ``time_ran_out`` in a while, instead of any earlier such wish."""

    def stop_waiting(self) -> None:
        """Forget that wish."""

    def redeem(self) -> None:
        """Find out what the ticket is good for."""

    def read_record(self) -> None:
        """What comes now is a control record."""

    def finish_record(self) -> None:
        """No more of the control record comes: it is whole, or none."""

    def consult(self) -> None:
        """Ask for what the control record asks for."""

    def connect(self) -> None:
        """Connect to the server."""

    def relay(self) -> None:
        """Let the octets pass."""

    def reply(self) -> None:
        """Send what there is to say (a rejection, a control reply) and no more after it."""

    def reply_unreached(self) -> None:
        """Say, if there is a way to, that the server cannot be reached, and no more after it."""

    def hang_up(self) -> None:
        """Close in peace."""

    def drop(self) -> None:
        """Cut the connection, and that to the server."""

    def release(self) -> None:
        """The connection is over: give back what it holds."""


@define
class LegCore:
    """What lasts as long as the connection."""

    hands: Hands


_builder = TypeMachineBuilder(Leg, LegCore)

silent = _builder.state("silent")
partial = _builder.state("partial")
redeeming = _builder.state("redeeming")
controlling = _builder.state("controlling")
consulting = _builder.state("consulting")
connecting = _builder.state("connecting")
relaying = _builder.state("relaying")
replying = _builder.state("replying")
closed = _builder.state("closed")

STATES = (
    silent,
    partial,
    redeeming,
    controlling,
    consulting,
    connecting,
    relaying,
    replying,
    closed,
)
#: Whatever a peer, the office, the clock or an operator may do at any moment.
INPUTS = (
    Leg.began_to_speak,
    Leg.ticket_presented,
    Leg.control_opened,
    Leg.control_requested,
    Leg.made_no_sense,
    Leg.port_checked,
    Leg.stream_ended,
    Leg.connection_lost,
    Leg.time_ran_out,
    Leg.passage_granted,
    Leg.passage_denied,
    Leg.point_reserved,
    Leg.server_reached,
    Leg.server_failed,
    Leg.relay_ended,
    Leg.revoked,
)


@silent.upon(Leg.began_to_speak).to(partial)
def wait_for_the_rest(leg: Leg, core: LegCore) -> None:
    """A few octets must become a ticket soon: checkers and people wait for the answer."""
    core.hands.wait(Wait.PARTIAL)


@silent.upon(Leg.ticket_presented).to(redeeming)
@partial.upon(Leg.ticket_presented).to(redeeming)
def redeem(leg: Leg, core: LegCore) -> None:
    """Look the ticket up."""
    core.hands.stop_waiting()
    core.hands.redeem()


@silent.upon(Leg.control_opened).to(controlling)
@partial.upon(Leg.control_opened).to(controlling)
def read_record(leg: Leg, core: LegCore) -> None:
    """Take the control record."""
    core.hands.wait(Wait.RECORD)
    core.hands.read_record()


@controlling.upon(Leg.time_ran_out).loop()
@controlling.upon(Leg.stream_ended).loop()
def finish_record(leg: Leg, core: LegCore) -> None:
    """A record without a text ends when nothing follows it."""
    core.hands.finish_record()


@controlling.upon(Leg.control_requested).to(consulting)
def consult(leg: Leg, core: LegCore) -> None:
    """Ask for what it asks for."""
    core.hands.stop_waiting()
    core.hands.consult()


@redeeming.upon(Leg.passage_granted).to(connecting)
@consulting.upon(Leg.passage_granted).to(connecting)
def connect(leg: Leg, core: LegCore) -> None:
    """Go to the server."""
    core.hands.wait(Wait.SERVER)
    core.hands.connect()


@connecting.upon(Leg.server_reached).to(relaying)
def relay(leg: Leg, core: LegCore) -> None:
    """Bring them together."""
    core.hands.stop_waiting()
    core.hands.relay()


@silent.upon(Leg.time_ran_out).to(replying)
@silent.upon(Leg.port_checked).to(replying)
@partial.upon(Leg.port_checked).to(replying)
@partial.upon(Leg.time_ran_out).to(replying)
@partial.upon(Leg.stream_ended).to(replying)
@redeeming.upon(Leg.passage_denied).to(replying)
@controlling.upon(Leg.made_no_sense).to(replying)
@consulting.upon(Leg.passage_denied).to(replying)
@consulting.upon(Leg.point_reserved).to(replying)
def reply(leg: Leg, core: LegCore) -> None:
    """Say the last word; then leave the client the time to read it."""
    core.hands.wait(Wait.DRAIN)
    core.hands.reply()


@connecting.upon(Leg.server_failed).to(replying)
@connecting.upon(Leg.time_ran_out).to(replying)
def reply_unreached(leg: Leg, core: LegCore) -> None:
    """The same when the server is not there."""
    core.hands.wait(Wait.DRAIN)
    core.hands.reply_unreached()


@silent.upon(Leg.stream_ended).to(closed)
@replying.upon(Leg.stream_ended).to(closed)
def hang_up(leg: Leg, core: LegCore) -> None:
    """Nothing was said, or all has been read."""
    core.hands.stop_waiting()
    core.hands.hang_up()
    core.hands.release()


@replying.upon(Leg.time_ran_out).to(closed)
@silent.upon(Leg.revoked).to(closed)
@partial.upon(Leg.revoked).to(closed)
@redeeming.upon(Leg.revoked).to(closed)
@controlling.upon(Leg.revoked).to(closed)
@consulting.upon(Leg.revoked).to(closed)
@connecting.upon(Leg.revoked).to(closed)
@relaying.upon(Leg.revoked).to(closed)
@replying.upon(Leg.revoked).to(closed)
@connecting.upon(Leg.connection_lost).to(closed)
def drop(leg: Leg, core: LegCore) -> None:
    """Cut it."""
    core.hands.stop_waiting()
    core.hands.drop()
    core.hands.release()


@silent.upon(Leg.connection_lost).to(closed)
@partial.upon(Leg.connection_lost).to(closed)
@redeeming.upon(Leg.connection_lost).to(closed)
@controlling.upon(Leg.connection_lost).to(closed)
@consulting.upon(Leg.connection_lost).to(closed)
@relaying.upon(Leg.relay_ended).to(closed)
@replying.upon(Leg.connection_lost).to(closed)
def release(leg: Leg, core: LegCore) -> None:
    """It is over."""
    core.hands.stop_waiting()
    core.hands.release()


_OPENINGS = (
    Leg.began_to_speak,
    Leg.ticket_presented,
    Leg.control_opened,
    Leg.port_checked,
)
_RECORDS = (Leg.control_requested, Leg.made_no_sense)
_ANSWERS = (Leg.passage_granted, Leg.passage_denied, Leg.point_reserved)
_SERVER = (Leg.server_reached, Leg.server_failed)
_END = (Leg.stream_ended, Leg.connection_lost)

#: What changes nothing.  A client that ends its stream while we connect is told of later by the
#: relay; an answer that comes for a connection that is gone falls on the floor.
_IGNORED = {
    silent: (*_RECORDS, *_ANSWERS, *_SERVER, Leg.relay_ended),
    partial: (Leg.began_to_speak, *_RECORDS, *_ANSWERS, *_SERVER, Leg.relay_ended),
    redeeming: (
        *(*_OPENINGS, *_RECORDS, *_SERVER),
        *(Leg.stream_ended, Leg.time_ran_out, Leg.point_reserved, Leg.relay_ended),
    ),
    controlling: (*_OPENINGS, *_ANSWERS, *_SERVER, Leg.relay_ended),
    consulting: (
        *(*_OPENINGS, *_RECORDS, *_SERVER),
        *(Leg.stream_ended, Leg.time_ran_out, Leg.relay_ended),
    ),
    connecting: (*_OPENINGS, *_RECORDS, *_ANSWERS, Leg.stream_ended, Leg.relay_ended),
    relaying: (*_OPENINGS, *_RECORDS, *_ANSWERS, *_SERVER, *_END, Leg.time_ran_out),
    replying: (*_OPENINGS, *_RECORDS, *_ANSWERS, *_SERVER, Leg.relay_ended),
    closed: INPUTS,
}
for _state, _inputs in _IGNORED.items():
    for _input in _inputs:
        _state.upon(_input).loop().returns(None)

#: Makes the machine of one connection: ``make_leg(LegCore(hands))``.
make_leg = compiled(_builder.build())


class _Nobody:
    """Hands of connections that are over."""

    def stop_waiting(self) -> None:
        """Nothing is waited for."""

    def release(self) -> None:
        """Nothing is held."""


#: For all connections that are over: it answers everything with nothing.
OVER = make_leg(LegCore(cast(Hands, _Nobody())))
OVER.connection_lost()
