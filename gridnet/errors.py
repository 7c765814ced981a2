"""The error taxonomy: every error that gridnet raises on purpose derives from GridnetError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

#: Characters of what was found that an error repeats.
_SHOWN_CHARACTERS = 60


def shown(text: str) -> str:
    """*text* as errors show it: quoted, cut when long, control characters escaped."""
    if len(text) > _SHOWN_CHARACTERS:
        return f"{text[:_SHOWN_CHARACTERS]!r}..."
    return repr(text)


class GridnetError(Exception):
    """Base of all errors that gridnet raises on purpose."""


@frozen
class Fault:
    """One thing that is wrong with what a person wrote, and where it stands."""

    where: str  #: a key (``firewall.ticket_ttl_seconds``) or a place (``servrc.cfg:12:5``)
    what: str  #: what was found and what was expected

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ConfigError(GridnetError):
    """
    A configuration cannot be used.  All faults of one file set are reported together.

    Raised before anything starts, or at a reload, which then leaves the running
    configuration in force.  Printed one fault a line.

    :ivar faults: what is wrong, in reading order; never empty.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: Sequence[Fault] = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class TableError(GridnetError):
    """The service table cannot take or give what was asked for."""


class DescriptorError(TableError):
    """
    A server descriptor does not follow the grammar.

    A peer that sends one sees its header ignored, as the released clients do.

    :ivar what: what was found.
    :ivar expected: what the grammar wants there; may be empty.
    :ivar column: where in the text, from 1; 0: the text as a whole.
    """

    def __init__(self, what: str, expected: str = "", column: int = 0) -> None:
        self.what = what
        self.expected = expected
        self.column = column
        text = f"{what}; expected {expected}" if expected else what
        super().__init__(f"column {column}: {text}" if column else text)


class TicketError(GridnetError):
    """
    A relay ticket cannot be issued or redeemed; the text is for the client.

    :cvar http_status: status of the dispatcher's reply.
    """

    http_status: int = 503


class PassageRefusedError(TicketError):
    """This client may not have that connection, now or at all: asking again is no use."""

    http_status = 403


class LaunchError(GridnetError):
    """
    A program behind a service cannot be started, or has no port to listen on.

    :ivar http_status: what the client that asked over HTTP sees; 503 when too many run.
    """

    def __init__(self, text: str, http_status: int = 500) -> None:
        super().__init__(text)
        self.http_status = http_status


class JobError(GridnetError):
    """A job, job event or job query is refused; the component's page names the codes."""


class ProtocolError(GridnetError):
    """Octets or calls that the protocol does not allow; never raised itself, only its children."""


class LocalProtocolError(ProtocolError):
    """Our caller's mistake: the peer sees nothing."""


class RemoteProtocolError(ProtocolError):
    """
    The peer's mistake: it loses its request or connection, nobody else does.

    :cvar http_status: status of the reply when the peer speaks HTTP.
    """

    http_status: int = 400
