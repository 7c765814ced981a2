"""The store socket: messages, limits, identities."""

from __future__ import annotations

import os
import pwd
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults

from gridnet.errors import ConfigError
from gridnet.lbproxy import frames
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.frames import Reply
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.running import RunningProxy, SocketTestCase, replies_in
from tests.lbproxy.vectors import line

CONFIG = SocketTestCase.config


class StoreSocketTests(SocketTestCase):
    """Frames in, replies out."""

    def test_permissions(self) -> None:
        """Both sockets are for their owner alone."""
        for path in (self.proxy.store, self.proxy.serve):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_small_pieces(self) -> Deferred[None]:
        """A message may come octet by octet."""

        async def work() -> None:
            connection = await self.proxy.connect(self.proxy.store)
            for octet in frames.encode_message(line("RegJob", REGISTER, job_id=job("a"))):
                connection.transport.write(bytes([octet]))
            found = await connection.until(replies_in)
            self.assertEqual(replies_in(found), [frames.OK])
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_pipelined_messages(self) -> Deferred[None]:
        """Messages sent at once are answered in their order, good and bad ones."""

        async def work() -> None:
            wanted = []
            octets = b""
            for number in range(150):
                if number % 7 == 3:
                    octets += frames.frame(b"nonsense")
                    wanted.append(frames.UNREADABLE)
                elif number % 7 == 5:
                    octets += frames.encode_message(line("Purge", job_id=job("unknown")))
                    wanted.append(frames.NOT_REGISTERED)
                else:
                    text = line("RegJob", REGISTER, job_id=job(f"j{number}"))
                    octets += frames.encode_message(text)
                    wanted.append(frames.OK)
            connection = await self.proxy.connect(self.proxy.store)
            connection.transport.write(octets)
            found = await connection.until(lambda got: len(replies_in(got)) >= 150)
            self.assertEqual(replies_in(found), wanted)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_bad_events_keep_the_connection(self) -> Deferred[None]:
        """A refused event is answered with its documented numbers; the next one is taken."""

        async def work() -> None:
            good = line("RegJob", REGISTER, job_id=job("a"))
            rows = [
                (b"6 michel\n1 x\n", 400, 0, "decoding event string failed"),
                (b"6 michal\n9 x\n", 400, 0, "decoding event string failed"),
                (b"6 michal\n1 x\n", 400, 1401, "ULM parse error"),
                (b"6 michal\n3 a=1\n", 400, 1402, "Unknown or missing event type"),
                (
                    b"6 michal\n" + frames.counted(good.replace(b"DG.USER=", b"DG.X=")),
                    400,
                    1403,
                    "Message incomplete, missing or empty field DG.USER.",
                ),
                (
                    b"6 michal\n" + frames.counted(good.replace(b"PROG=", b"DATE=1 PROG=")),
                    400,
                    1404,
                    "Key DATE already exists.",
                ),
                (
                    b"6 michal\n" + frames.counted(good.replace(b"/O=Grid/CN=jan", b"")),
                    600,
                    0,
                    "LB proxy can't store using unauthenticated connection",
                ),
                (b"6 michal\n" + frames.counted(good) + b"left over", 0, 0, "OK"),
                (frames.counted(good), 0, 0, "OK"),
            ]
            connection = await self.proxy.connect(self.proxy.store)
            for number, (body, major, minor, text) in enumerate(rows, 1):
                connection.transport.write(frames.frame(body))
                found = await connection.until(lambda got: len(replies_in(got)) >= number)  # noqa: B023
                self.assertEqual(replies_in(found)[-1], Reply(major, minor, text), body)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_bad_frames_close(self) -> Deferred[None]:
        """No reply, the connection closed, the service alive; messages before it are answered."""

        async def work() -> None:
            for octets in (
                b"x" * 17,
                b"               0\n",
                b"5               \nabcde",
                b"          200001\n",
                b"              -5\n",
            ):
                self.assertEqual(await self.store_closes(octets), b"", octets)
            good = frames.encode_message(line("RegJob", REGISTER, job_id=job("a")))
            found = await self.store_closes(good + b"x" * 17 + good)
            self.assertEqual(found, frames.OK_FRAME)
            await self.check_lives()

        return self.run_async(work())

    def test_replies_that_nobody_reads(self) -> Deferred[None]:
        """A client that only sends is read no further until it takes its replies; then all come."""

        async def work() -> None:
            count = 60_000
            connection = await self.proxy.connect(self.proxy.store)
            connection.transport.pauseProducing()
            connection.transport.write(frames.frame(b"x") * count)
            factory = self.proxy.service._store_factory
            refused = await self.clogged(factory, lambda: sum(factory.refusals.values()))
            self.assertLess(refused, count // 2)
            await self.check_lives()
            self.assertEqual(sum(factory.refusals.values()), refused)
            connection.transport.resumeProducing()
            wanted = frames.encode_reply(frames.UNREADABLE) * count
            found = await connection.until(lambda got: len(got) >= len(wanted))
            self.assertEqual(found, wanted)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_half_a_message_is_not_stored(self) -> Deferred[None]:
        """A connection that ends in mid-message leaves nothing."""

        async def work() -> None:
            octets = frames.encode_message(line("RegJob", REGISTER, job_id=job("half")))
            connection = await self.proxy.connect(self.proxy.store)
            connection.transport.write(octets[:-1])
            connection.transport.loseConnection()
            await connection.lost
            reply = await self.proxy.log(line("Purge", job_id=job("half")))
            self.assertEqual(reply, frames.NOT_REGISTERED)

        return self.run_async(work())

    def test_half_closed(self) -> Deferred[None]:
        """A client that ends its sending side first still gets its reply."""

        async def work() -> None:
            connection = await self.proxy.connect(self.proxy.store)
            octets = frames.encode_message(line("RegJob", REGISTER, job_id=job("a")))
            connection.transport.write(octets)
            connection.transport.loseWriteConnection()
            self.assertEqual(await connection.lost, frames.OK_FRAME)

        return self.run_async(work())

    def test_large_messages_share_a_bound(self) -> Deferred[None]:
        """Unfinished large messages together have a limit; beyond it a connection is closed."""

        async def work() -> None:
            held = []
            for size in (100,) * 10 + (199_000,) * 4:  # announcing much is not sending it
                connection = await self.proxy.connect(self.proxy.store)
                connection.transport.write(b"%16d\n%s" % (200_000, b"x" * size))
                held.append(connection)
            while self.proxy.service._store_factory._budget.left:
                await self.pause()
            one_more = await self.store_closes(b"%16d\n%s" % (200_000, b"x" * 199_000))
            self.assertEqual(one_more, b"")
            for connection in held:
                connection.transport.loseConnection()
                await connection.lost
            big = {"NAME": "n", "VALUE": "v" * 150_000}
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            for number in range(2, 12):
                text = line("UserTag", big, job_id=job("a"), seqcode=f"UI{number}")
                self.assertEqual(await self.proxy.log(text), frames.OK)

        return self.run_async(work())

    def test_many_clients(self) -> Deferred[None]:
        """A hundred clients at once, each with its own job, all acknowledged, all visible."""

        async def client(number: int) -> None:
            connection = await self.proxy.connect(self.proxy.store)
            name = f"client{number}"
            lines = [line("RegJob", REGISTER, job_id=job(name))]
            lines += [line("Purge", job_id=job(name), seqcode=f"UI{n}") for n in range(2, 8)]
            for count, text in enumerate(lines, 1):
                connection.transport.write(frames.encode_message(text))
                found = await connection.until(lambda got: len(replies_in(got)) >= count)  # noqa: B023
                self.assertEqual(replies_in(found)[-1], frames.OK)
            connection.transport.loseConnection()
            await connection.lost
            status, _ = await self.proxy.ask(
                "/queryJobs",
                b"<edg_wll_QueryJobsRequest><flags>no_jobs</flags><and><orJobConditions><equal>"
                b"<jobId>%s</jobId></equal></orJobConditions></and></edg_wll_QueryJobsRequest>"
                % job(name).encode(),
            )
            self.assertEqual(status, 200)

        clients = [Deferred.fromCoroutine(client(number)) for number in range(100)]
        return gatherResults(clients).addCallback(self._check_groups)

    def _check_groups(self, _: object) -> None:
        book = self.proxy.service.book
        self.assertEqual(book.stored, 700)
        self.assertLess(book.writer.counts.groups, 700)


class LimitTests(SocketTestCase):
    """Numbers of connections and of waiting events."""

    config = evolve(CONFIG, max_connections=5, max_waiting_events=3, max_pipelined=4)

    def test_connections(self) -> Deferred[None]:
        """One more than may be is closed at once; when one goes, there is room again."""

        async def work() -> None:
            held = [await self.proxy.connect(self.proxy.store) for _ in range(5)]
            self.assertEqual(await (await self.proxy.connect(self.proxy.store)).lost, b"")
            self.assertEqual(self.proxy.service._store_factory.refused, 1)
            for connection in held:
                connection.transport.loseConnection()
                await connection.lost
            # The service may hear of a new connection before it hears that those have gone.
            while self.proxy.service._store_factory.connections:
                await self.pause()
            await self.check_lives()

        return self.run_async(work())

    def test_waiting_events(self) -> Deferred[None]:
        """Above the bound nothing more is read for a while, and nothing is lost."""

        async def work() -> None:
            connections = [await self.proxy.connect(self.proxy.store) for _ in range(5)]
            for number, connection in enumerate(connections):
                for count in range(40):
                    text = line("RegJob", REGISTER, job_id=job(f"j{number}-{count}"))
                    connection.transport.write(frames.encode_message(text))
            for connection in connections:
                found = await connection.until(lambda got: len(replies_in(got)) >= 40)
                self.assertEqual(set(replies_in(found)), {frames.OK})
                connection.transport.loseConnection()
                await connection.lost
            self.assertEqual(self.proxy.service.book.stored, 200)

        return self.run_async(work())


class WaitingOctetsTests(SocketTestCase):
    """Large messages that wait."""

    config = evolve(CONFIG, max_waiting_octets=100_000)

    def test_waiting_octets(self) -> Deferred[None]:
        """Above the bound nothing more is read for a while, and nothing is lost."""

        async def work() -> None:
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            book, factory = self.proxy.service.book, self.proxy.service._store_factory
            most = 0
            take = factory.take

            def watched(event: Event, done: Any) -> None:
                nonlocal most
                take(event, done)
                most = max(most, book.backlog.octets)

            self.patch(factory, "take", watched)
            connections = [await self.proxy.connect(self.proxy.store) for _ in range(8)]
            for number, connection in enumerate(connections):
                for count in range(10):
                    text = {"NAME": f"n{number}", "VALUE": "v" * 50_000}
                    code = f"UI{number + 1} NS{count}"
                    message = line("UserTag", text, job_id=job("a"), seqcode=code)
                    connection.transport.write(frames.encode_message(message))
            for connection in connections:
                found = await connection.until(lambda got: len(replies_in(got)) >= 10)
                self.assertEqual(set(replies_in(found)), {frames.OK})
                connection.transport.loseConnection()
                await connection.lost
            self.assertEqual((book.stored, book.backlog.events, book.backlog.octets), (81, 0, 0))
            # Each connection may have read a little when the bound is reached.
            self.assertLess(most, 100_000 + 8 * 2 * 51_000)

        return self.run_async(work())


class IdentityTests(SocketTestCase):
    """Peer credentials."""

    me = pwd.getpwuid(os.geteuid()).pw_name
    config = evolve(
        CONFIG, check_identity=True, identities={me: ("/O=Grid/CN=Jan", "/O=Grid/CN=robot")}
    )

    def test_names(self) -> Deferred[None]:
        """A local user may log under the listed names, in any spelling, and under no other."""

        async def work() -> None:
            for user, major in (
                ("/O=Grid/CN=jan", 0),
                ("/o=grid/cn=JAN/CN=proxy", 0),
                ("/O=Grid/CN=robot", 600),
                ("/O=Grid/CN=eva", 600),
            ):
                reply = await self.proxy.log(line("RegJob", REGISTER, job_id=job("a"), user=user))
                self.assertEqual(reply.major, major, user)

        return self.run_async(work())

    def test_who_is_there(self) -> Deferred[None]:
        """The kernel tells process and user of a peer."""

        async def work() -> None:
            await self.proxy.connect(self.proxy.store)
            await self.check_who()

        return self.run_async(work())

    async def check_who(self) -> None:
        await self.proxy.log(line("Purge", job_id=job("x")))
        peers = {one.peer for one in self.proxy.service._store_factory.connections}
        self.assertEqual(
            {(one.pid, one.uid) for one in peers if one}, {(os.getpid(), os.geteuid())}
        )

    def test_unknown_users_are_a_fault(self) -> None:
        """A user that this host does not know is told at the start."""
        config = evolve(self.config, identities={"no such user here": ("*",)})
        with self.assertRaisesRegex(ConfigError, "no user"):
            RunningProxy(config).start()


class AnybodyTests(SocketTestCase):
    """A user who may use any name."""

    config = evolve(CONFIG, check_identity=True, identities={str(os.geteuid()): ("*",)})

    def test_any_name(self) -> Deferred[None]:
        """The star is any name; users by number are known too."""

        async def work() -> None:
            await self.check_lives()

        return self.run_async(work())
