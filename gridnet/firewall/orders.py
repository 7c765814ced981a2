"""What an operator may ask of a running relay, by its control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gridnet.control import Answerer
from gridnet.errors import RemoteProtocolError
from gridnet.firewall.protocol import FirewallFactory
from gridnet.table.address import canonical_address


def _text(question: Mapping[str, Any], name: str) -> str:
    value = question.get(name)
    if not isinstance(value, str) or not value:
        raise RemoteProtocolError(f'expected a text "{name}"')
    return value


class Orders:
    """Looks at, ends and refuses connections."""

    _log = Logger()

    def __init__(self, factory: FirewallFactory) -> None:
        self._factory = factory

    def answerers(self) -> Mapping[str, Answerer]:
        """The questions of the control socket."""
        return {
            "sessions": self.sessions,
            "revoke": self.revoke,
            "refuse": self.refuse,
            "pardon": self.pardon,
            "penalties": self.penalties,
        }

    def sessions(self, question: Mapping[str, Any]) -> Any:
        """``sessions``: the connections that are relayed now."""
        now = self._factory.now()
        found = []
        for session in self._factory.sessions:
            up, down = session.octets()
            passage = session.passage
            found.append(
                {
                    "session": session.name,
                    "client": session.peer,
                    "asked_by": passage.client,
                    "service": passage.service,
                    "server": f"{passage.host}:{passage.port}",
                    "octets_up": up,
                    "octets_down": down,
                    "seconds": round(now - session.since, 1),
                }
            )
        return {"sessions": found, "tickets_waiting": self._factory.office.store.waiting}

    def revoke(self, question: Mapping[str, Any]) -> Any:
        """``revoke``: end the ``session`` of that name, or make that ticket worthless."""
        name = _text(question, "session")
        ended = self._end(name)
        store = self._factory.office.store
        for deferred in (store.revoke(name), store.tell_revoked(name, self._factory.now())):
            deferred.addErrback(lambda failure: self._log.failure("revocation not told", failure))
        return {"ended": ended}

    def _end(self, name: str) -> bool:
        session = self._factory.sessions.find(name)
        if session is not None:
            session.end("revoked")
        return session is not None

    def hear(self) -> Deferred[None]:
        """End what other relays have revoked."""
        store = self._factory.office.store

        def heard(names: Any) -> None:
            for name in names:
                self._end(name)
                store.revoke(name).addErrback(
                    lambda failure: self._log.failure("ticket not revoked", failure)
                )

        def failed(failure: Any) -> None:
            self._log.failure("revocations not heard", failure)

        return store.hear_revoked(self._factory.now()).addCallback(heard).addErrback(failed)

    def refuse(self, question: Mapping[str, Any]) -> Any:
        """``refuse``: put ``client`` into the penalty box and end its connections."""
        client = self._client(question)
        self._factory.office.penalties.order(client, self._factory.now())
        ended = 0
        for session in self._factory.sessions:
            if client in (session.peer, session.passage.client):
                session.end("client refused")
                ended += 1
        return {"ended": ended}

    def pardon(self, question: Mapping[str, Any]) -> Any:
        """``pardon``: let ``client`` out of the penalty box."""
        penalties = self._factory.office.penalties
        return {"pardoned": penalties.pardon(self._client(question), self._factory.now())}

    def penalties(self, question: Mapping[str, Any]) -> Any:
        """``penalties``: who is refused now."""
        now = self._factory.now()
        return [
            {
                "client": penalty.client,
                "reason": penalty.reason.value,
                "offences": penalty.count,
                "service": penalty.service,
                "seconds_left": round(penalty.until - now, 1),
            }
            for penalty in self._factory.office.penalties.current(now)
        ]

    def _client(self, question: Mapping[str, Any]) -> str:
        # A penalty names the /64 of an IPv6 client, which is no address but comes from here.
        text = _text(question, "client")
        address = canonical_address(text.removesuffix("/64"))
        if address is None:
            raise RemoteProtocolError("expected an IP address")
        return address
