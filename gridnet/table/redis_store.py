"""State that several processes share in a Redis server.  The only importer of txredisapi."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from gridnet.errors import GridnetError
from gridnet.table.redis_config import RedisConfig


class RedisUnavailableError(GridnetError):
    """The Redis server does not answer, or answers with an error."""


def _no_connection(result: object, seconds: float) -> object:
    raise RedisUnavailableError(f"no connection within {seconds:g} s")


class RedisStore(Service):
    """
    Connections to one Redis server, made when the service starts and made anew when lost.

    Keys are given without the configured prefix; replies are octets and numbers, as Redis has
    them.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._pool: Any = None
        self._clock: IReactorTime

    def key(self, name: str) -> str:
        """The full key of *name*."""
        return self._config.prefix + name

    def startService(self) -> None:
        """Begin to connect."""
        # Imported here: it imports the reactor.
        import txredisapi
        from twisted.internet import reactor

        self._clock = IReactorTime(reactor)
        config = self._config
        shared: dict[str, Any] = {
            "dbid": config.database or None,
            "poolsize": config.connections,
            "charset": None,
            "password": config.password or None,
            "username": config.username or None,
            "connectTimeout": config.connect_timeout_seconds,
            "replyTimeout": config.reply_timeout_seconds,
            "convertNumbers": False,
        }
        if config.path:
            self._pool = txredisapi.lazyUnixConnectionPool(config.path, **shared)
        else:
            self._pool = txredisapi.lazyConnectionPool(config.host, config.port, **shared)
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Disconnect; fires when that is done."""
        super().stopService()
        pool, self._pool = self._pool, None
        if pool is None:
            return maybeDeferred(lambda: None)

        def ignore(_: object) -> None:
            """Whether the farewell was heard does not matter."""

        done: Deferred[Any] = maybeDeferred(pool.disconnect)
        return done.addBoth(ignore)

    def call(self, command: str, *arguments: str | bytes | int | float) -> Deferred[Any]:
        """
        Run one command.

        :raises RedisUnavailableError: (in the Deferred) it cannot be run now.
        """

        def failed(failure: Failure) -> Failure:
            raise RedisUnavailableError(f"redis: {failure.getErrorMessage()}") from None

        def run() -> Any:
            if self._pool is None:
                raise RedisUnavailableError("redis: not started")
            return self._pool.execute_command(command, *arguments)

        done: Deferred[Any] = maybeDeferred(run)
        if not done.called:
            # While it connects anew, the library lets calls wait without end.
            done.addTimeout(self._patience(), self._clock, _no_connection)
        return done.addErrback(failed)

    def _patience(self) -> float:
        """Seconds that a call may take; with a connection its reply has a time-out of its own."""
        seconds = self._config.connect_timeout_seconds
        if self._pool._factory.size:
            seconds += self._config.reply_timeout_seconds
        return seconds
