"""``twisted.protocols.portforward``: ``python -m benchmarks.relay_forward PORT TARGET``."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.protocols.portforward import ProxyFactory

reactor: Any = _reactor

if __name__ == "__main__":
    reactor.listenTCP(
        int(sys.argv[1]),
        ProxyFactory("127.0.0.1", int(sys.argv[2])),
        backlog=4096,
        interface="127.0.0.1",
    )
    reactor.run()
