"""
Programs run for HTTP clients (docs/protocols/dispatcher.rst, Connection-Info).

The dispatcher's part of it: finding the entry, refusing what may not be, and passing octets.  The
program itself is the launcher's (:class:`gridnet.interfaces.IProgramLauncher`).
"""

from __future__ import annotations

from twisted.logger import Logger

from gridnet.dispatch import wire
from gridnet.dispatch.body import LAST_CHUNK, chunk
from gridnet.dispatch.dedicated import Offices, OneReply, Refused, launch_request
from gridnet.dispatch.dispatcher import relay_path
from gridnet.dispatch.head import RequestHead
from gridnet.dispatch.http import Exchange, HttpConnection
from gridnet.dispatch.relay import DEFAULT_CONTENT_TYPE
from gridnet.dispatch.reply import connection_line, failure, status_line
from gridnet.dispatch.request import ConnectionMode, DispatchRequest
from gridnet.dispatch.wire import header
from gridnet.errors import LaunchError
from gridnet.table.model import Entry
from gridnet.table.server_info import ServerType
from gridnet.table.way_in import ConnectionPoint, RunningProgram


def program_exchange(
    offices: Offices,
    head: RequestHead,
    request: DispatchRequest,
    connection: HttpConnection,
) -> Exchange:
    """What becomes of an NCBID request."""
    if request.connection_mode is ConnectionMode.STATEFUL:
        return Waiting(offices, head, request, connection)
    return Running(offices, head, request, connection)


def find_program(offices: Offices, request: DispatchRequest, peer: str) -> Entry:
    """
    The entry whose program *request* is for.

    :raises Refused: there is none, or not for this client.
    """
    entries = [
        entry
        for entry in offices.dispatcher.table.entries(request.service)
        if entry.info.type is ServerType.NCBID
        and entry.launcher
        and entry.owner in ("", offices.address)
    ]
    if not entries:
        raise Refused(404, "service not found")
    # Several programs of one name differ in their arguments.
    told = request.arguments.split("&")
    entry = next(
        (each for each in entries if all(w in told for w in each.info.arguments.split("&"))),
        entries[0],
    )
    if not offices.dispatcher.is_for(entry, request, peer):
        raise Refused(403, "the service is for clients inside")
    if entry.info.stateful and request.connection_mode is ConnectionMode.STATELESS:
        raise Refused(403, "the service is stateful")
    return entry


class Waiting(OneReply):
    """A program that will wait for one connection of the client's own."""

    async def work(self) -> bytes:
        """See :class:`gridnet.dispatch.dedicated.OneReply`."""
        offices = self.offices
        entry = find_program(offices, self.request, self.connection.address)
        launcher = offices.launcher()
        if launcher is None:
            raise Refused(503, "no programs are run here")
        asked = launch_request(offices, self.head, self.request, self.connection, entry)
        try:
            point: ConnectionPoint = await offices.timely(launcher.listen_once(asked))
        except LaunchError as error:
            raise Refused(error.http_status, str(error)) from None
        return relay_path(entry) + wire.connection_info(point)


class Running:
    """A program whose input is the request's body and whose output is the reply's."""

    _log = Logger()

    def __init__(
        self,
        offices: Offices,
        head: RequestHead,
        request: DispatchRequest,
        connection: HttpConnection,
    ) -> None:
        self._offices = offices
        self._head = head
        self._request = request
        self._connection = connection
        self._entry: Entry | None = None
        self._program: RunningProgram | None = None
        self._whole = False
        self._replied = False
        self._chunked = False
        self._keep = False
        self._over = False

    # -- what the connection calls (:class:`gridnet.dispatch.http.Exchange`)

    def start(self) -> None:
        """Run the program."""
        offices = self._offices
        try:
            self._entry = entry = find_program(offices, self._request, self._connection.address)
            launcher = offices.launcher()
            if launcher is None:
                raise Refused(503, "no programs are run here")
            asked = launch_request(offices, self._head, self._request, self._connection, entry)
            self._program = launcher.run(asked, self)
        except (Refused, LaunchError) as error:
            self._fail(error.http_status, str(error))
            return
        self._connection.want_body()

    def body_received(self, data: bytes) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        if self._program is not None:
            self._program.write(data)

    def body_ended(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._whole = True
        if self._program is not None:
            self._program.end_input()

    def reply_paused(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        if self._program is not None:
            self._program.pause_output()

    def reply_resumed(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        if self._program is not None:
            self._program.resume_output()

    def client_lost(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._over = True
        if self._program is not None:
            self._program.abandon()

    # -- what the launcher calls (:class:`gridnet.table.way_in.ProgramOutput`)

    def output_received(self, data: bytes) -> None:
        """See :class:`gridnet.table.way_in.ProgramOutput`."""
        if self._over or not data:
            return
        if not self._replied:
            self._begin(None)
        if self._head.method != "HEAD":
            self._connection.write(chunk(data) if self._chunked else data)

    def input_paused(self) -> None:
        """See :class:`gridnet.table.way_in.ProgramOutput`."""
        if not self._over:
            self._connection.pause_body()

    def input_resumed(self) -> None:
        """See :class:`gridnet.table.way_in.ProgramOutput`."""
        if not self._over:
            self._connection.resume_body()

    def program_ended(self, status: int | None, reason: str, http_status: int = 502) -> None:
        """See :class:`gridnet.table.way_in.ProgramOutput`."""
        self._program = None
        if self._over:
            return
        if status != 0 or reason:
            text = reason or f"the program ended with status {status}"
            if not self._replied:
                self._fail(http_status, text)
                return
            self._log.warn(
                "{service}: reply cut off, {reason}", service=self._request.service, reason=text
            )
            self._over = True
            self._connection.abort()
            return
        if not self._replied:
            self._begin(0)
        elif self._chunked:
            self._connection.write(LAST_CHUNK)
        self._over = True
        self._connection.finish(self._keep)

    def _begin(self, length: int | None) -> None:
        """Send the reply's head; *length* of the body, when it is known."""
        self._replied = True
        self._offices.replies[self._request.kind.name, 200] += 1
        head = self._head
        entry = self._entry
        assert entry is not None
        self._keep = head.keep_alive
        framing = b""
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif head.minor == 1:
            self._chunked = head.method != "HEAD"
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self._keep = False
        self._connection.write(
            b"".join(
                (
                    status_line(200),
                    header("Service", self._request.service),
                    relay_path(entry),
                    header("Content-Type", entry.info.content_type or DEFAULT_CONTENT_TYPE),
                    framing,
                    connection_line(head.minor, self._keep),
                    b"\r\n",
                )
            )
        )

    def _fail(self, status: int, text: str) -> None:
        self._over = True
        self._offices.replies[self._request.kind.name, status] += 1
        head = self._head
        keep = head.keep_alive and (self._whole or head.framing.empty)
        self._connection.write(
            failure(
                status,
                text,
                minor=head.minor,
                keep=keep,
                lines=header("Service", self._request.service),
                headless=head.method == "HEAD",
            )
        )
        self._connection.finish(keep)
