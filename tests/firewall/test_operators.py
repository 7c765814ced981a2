"""What operators see and order, through the relay's control socket and ``gridnet relay``."""

from __future__ import annotations

import io
import json
import shutil
import stat
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from zope.interface.verify import verifyObject

from gridnet.control import ControlError, ask
from gridnet.firewall.tools import main
from gridnet.interfaces import IObjectSource
from gridnet.table.way_in import ConnectionPoint
from tests.firewall.fixture import Talker, dial
from tests.firewall.test_site import SiteTestCase

reactor: Any = _reactor


class OperatorTests(SiteTestCase):
    """A relay with connections, and somebody who looks after it."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        # Near the root: the path of a socket is short.
        self.short = Path(tempfile.mkdtemp(prefix="gridnet-"))
        self.socket = self.short / "firewall.control"
        self.more = f'control = "{self.socket}"\n'
        return super().setUp()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return super().tearDown().addCallback(lambda _: shutil.rmtree(self.short))

    async def order(self, *words: str) -> tuple[int, str]:
        """Exit status and words of ``gridnet relay``."""

        def run() -> tuple[int, str]:
            said = io.StringIO()
            with redirect_stdout(said), redirect_stderr(said):
                return main(["--control", str(self.socket), *words]), said.getvalue()

        result: tuple[int, str] = await deferToThread(run)
        return result

    async def json(self, *words: str) -> Any:
        status, said = await self.order("--json", *words)
        self.assertEqual(status, 0, said)
        return json.loads(said)

    async def connected(self) -> tuple[Talker, str]:
        """A client that is being relayed, and the name of its session."""
        point: ConnectionPoint = await self.office.reserve(self.wish())
        talker = Talker(point.ticket.to_bytes(4, "big") + b"hello", stay=True)
        await dial(point.port, talker)
        await talker.hears(5)
        sessions = (await self.json("list"))["sessions"]
        return talker, sessions[-1]["session"]

    def test_sessions_are_shown(self) -> Deferred[None]:
        async def scenario() -> None:
            talker, name = await self.connected()
            await self.office.reserve(self.wish())
            found = await self.json("list")
            self.assertEqual(found["tickets_waiting"], 1)
            (session,) = found["sessions"]
            self.assertEqual((session["service"], session["octets_up"]), ("Bounce", 5))
            self.assertEqual((session["client"], session["asked_by"]), ("127.0.0.1", "192.0.2.1"))
            status, text = await self.order()
            self.assertEqual(status, 0)
            self.assertIn(name, text)
            self.assertIn("1 tickets wait to be presented", text)
            talker.transport.abortConnection()
            await talker.over

        return Deferred.fromCoroutine(scenario())

    def test_sessions_are_a_list_that_mirrors_follow(self) -> Deferred[None]:
        async def scenario() -> None:
            source = self.site.find(IObjectSource, "sessions")
            verifyObject(IObjectSource, source)
            told: list[tuple[str, Any]] = []
            stop = source.subscribe(lambda key, row: told.append((key, row)))
            talker, name = await self.connected()
            ((key, row),) = source.snapshot().items()
            self.assertEqual(told, [(name, row)])
            self.assertEqual((key, row["service"], row["client"]), (name, "Bounce", "127.0.0.1"))
            await self.order("revoke", name)
            await talker.over
            self.assertEqual(told[1:], [(name, None)])
            self.assertEqual(source.snapshot(), {})
            stop()
            other, _ = await self.connected()
            self.assertEqual(len(told), 2)
            other.transport.abortConnection()
            await other.over

        return Deferred.fromCoroutine(scenario())

    def test_a_revoked_session_ends_at_once(self) -> Deferred[None]:
        async def scenario() -> None:
            talker, name = await self.connected()
            other, _ = await self.connected()
            begin = reactor.seconds()
            self.assertEqual((await self.order("revoke", name)), (0, "ended\n"))
            await talker.over
            self.revoked_after = reactor.seconds() - begin
            self.assertEqual(len((await self.json("list"))["sessions"]), 1)
            _, text = await self.order("revoke", name)
            self.assertIn("no such session", text)
            other.transport.abortConnection()
            await other.over

        return Deferred.fromCoroutine(scenario())

    def test_a_revoked_ticket_is_worth_nothing(self) -> Deferred[None]:
        async def scenario() -> None:
            point: ConnectionPoint = await self.office.reserve(self.wish())
            (ticket,) = self.office.store._book.live()
            await self.order("revoke", ticket.fingerprint)
            talker = Talker(point.ticket.to_bytes(4, "big"), stay=True)
            await dial(point.port, talker)
            await talker.peer_end
            self.assertTrue(talker.heard.startswith(b"NCBI Firewall Daemon:  Invalid ticket."))
            talker.transport.abortConnection()
            await talker.over

        return Deferred.fromCoroutine(scenario())

    def test_clients_are_refused_and_pardoned(self) -> Deferred[None]:
        async def scenario() -> None:
            talker, _ = await self.connected()
            self.assertEqual(await self.json("refuse", "192.0.2.1"), {"ended": 1})
            await talker.over
            self.assertIn("refused for", self.office.refusal("192.0.2.1"))
            (penalty,) = await self.json("penalties")
            self.assertEqual((penalty["client"], penalty["reason"]), ("192.0.2.1", "order"))
            _, text = await self.order("penalties")
            self.assertIn("192.0.2.1", text)
            self.assertEqual(await self.json("pardon", "192.0.2.1"), {"pardoned": True})
            self.assertEqual(await self.json("pardon", "192.0.2.1"), {"pardoned": False})
            self.assertEqual(self.office.refusal("192.0.2.1"), "")
            await self.json("refuse", "2001:db8::5")
            (penalty,) = await self.json("penalties")
            self.assertEqual(penalty["client"], "2001:db8::/64")
            self.assertEqual(await self.json("pardon", penalty["client"]), {"pardoned": True})

        return Deferred.fromCoroutine(scenario())

    def test_nonsense_is_refused_and_the_socket_is_its_owners(self) -> Deferred[None]:
        async def scenario() -> None:
            self.assertEqual(stat.S_IMODE(self.socket.stat().st_mode), 0o600)
            for question in (
                {"ask": "revoke"},
                {"ask": "revoke", "session": 1},
                {"ask": "refuse", "client": "somebody"},
                {"ask": "pardon", "client": ""},
                {"ask": "everything"},
            ):
                await self.assertFailure(deferToThread(ask, self.socket, question), ControlError)
            status, text = await self.order("refuse", "nobody.example.org")
            self.assertEqual(status, 1)
            self.assertIn("expected an IP address", text)

        return Deferred.fromCoroutine(scenario())


class ToolTests(SiteTestCase):
    """Finding the relay."""

    def test_where_there_is_none(self) -> Deferred[None]:
        async def scenario() -> None:
            said = io.StringIO()
            with redirect_stderr(said):
                self.assertEqual(main(["--control", str(self.directory / "none")]), 1)
                path = self.directory / "wrong.toml"
                path.write_text("[firewall]\nports = 1\n")
                self.assertEqual(main(["--config", str(path)]), 2)
                path.write_text('[firewall]\ncontrol = ""\n')
                self.assertEqual(main(["--config", str(path)]), 2)
            self.assertIn("no control socket", said.getvalue())

        return Deferred.fromCoroutine(scenario())
