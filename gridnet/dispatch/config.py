"""``[dispatch]``: the HTTP dispatcher."""

from __future__ import annotations

from attrs import field, frozen

from gridnet.config import at_least, between, more_than


@frozen
class DispatchConfig:
    """Where the dispatcher listens, how it relays, and what anybody may ask of it."""

    listen: str = "tcp:8080"  #: endpoint string; takes plain HTTP and TLS
    workers: int = field(default=1, validator=at_least(1))  #: processes; 1: this one serves
    tls: bool = True  #: a TLS handshake on the listening port is answered
    #: PEM file; empty: a self-signed certificate is made in ``site.state_dir`` at first start
    certificate: str = ""
    certificate_key: str = ""  #: PEM file of its private key
    #: PEM file of authorities that servers marked ``$=yes`` must be certified by, for their names
    #: where they have one; empty: any certificate will do, as for the released clients
    server_authorities: str = ""
    #: paths that are dispatched beside those that end in ``/dispd.cgi`` or ``/ncbid.cgi``
    paths: tuple[str, ...] = ()
    #: paths that other components answer, when they are there
    page_paths: tuple[str, ...] = ("/IEB/ToolBox/NETWORK/fwd_check.cgi",)
    ncbid_path: str = "/Service/ncbid.cgi"  #: where NCBID servers run their programs

    # What one client may send.
    max_head_octets: int = field(default=262_144, validator=at_least(1024))
    max_headers: int = field(default=1200, validator=at_least(16))  #: lines of one head
    head_timeout_seconds: float = field(default=20.0, validator=more_than(0))  #: first octet on
    keep_alive_seconds: float = field(default=75.0, validator=more_than(0))  #: between requests
    tls_handshake_seconds: float = field(default=15.0, validator=more_than(0))
    #: silence while a reply or a body is under way, either side
    body_timeout_seconds: float = field(default=60.0, validator=more_than(0))
    #: body that comes with a request that has no use for it, octets
    max_ignored_body_octets: int = field(default=1_048_576, validator=at_least(0))
    #: octets of later requests that wait for an earlier reply
    max_pipelined_octets: int = field(default=65_536, validator=at_least(1024))
    #: requests answered in one turn before others get theirs
    max_pipelined_requests: int = field(default=100, validator=at_least(1))
    linger_seconds: float = field(default=2.0, validator=more_than(0))  #: closing, peer still sends

    # What all clients may take together; of each worker.
    max_connections: int = field(default=10_000, validator=at_least(1))
    max_connections_per_address: int = field(default=8_000, validator=at_least(1))
    #: TLS handshakes not done yet, each about 50 kB; beyond, the longest one is cut off
    max_tls_handshakes: int = field(default=1024, validator=at_least(1))
    #: octets of unfinished heads and waiting requests
    max_held_octets: int = field(default=67_108_864, validator=at_least(65_536))
    #: octets waiting for one peer that reads slowly, before the other side is made to wait
    write_buffer_octets: int = field(default=65_536, validator=at_least(4096))
    cached_heads: int = field(default=4096, validator=at_least(1))  #: request heads kept parsed
    cached_head_octets: int = field(default=4096, validator=at_least(0))  #: longest one kept
    #: octets of the heads kept parsed, together; parsed they take ten times as much and more
    cached_octets: int = field(default=1_048_576, validator=at_least(0))
    cached_answers: int = field(default=4096, validator=at_least(1))  #: questions kept answered
    #: servers in these answers, together; each takes about 800 octets
    cached_servers: int = field(default=50_000, validator=at_least(1))
    #: connections that wait to be accepted
    backlog: int = field(default=1024, validator=between(1, 65_535))

    # Relaying.
    relay_tries: int = field(default=1, validator=at_least(1))  #: servers, for released clients
    browser_tries: int = field(default=3, validator=at_least(1))  #: servers, for others
    relay_connect_seconds: float = field(default=5.0, validator=more_than(0))
    relay_idle_seconds: float = field(default=300.0, validator=more_than(0))  #: server's silence
    tunnel_idle_seconds: float = field(default=3600.0, validator=more_than(0))  #: after an upgrade
    max_relays_per_server: int = field(default=512, validator=at_least(1))  #: under way at once
    #: body kept so that a browser's request can go to another server, octets
    replay_octets: int = field(default=65_536, validator=at_least(0))
    pool_per_server: int = field(default=128, validator=at_least(0))  #: idle connections kept
    pool_total: int = field(default=1024, validator=at_least(0))  #: idle connections kept in all
    pool_idle_seconds: float = field(default=20.0, validator=more_than(0))
    max_reply_head_octets: int = field(default=262_144, validator=at_least(1024))
    max_hops: int = field(default=5, validator=at_least(1))  #: dispatchers one request may pass
    failed_server_seconds: int = field(default=30, validator=at_least(1))  #: clients avoid it
    #: the relay or the launcher makes a dedicated connection ready
    dedicated_seconds: float = field(default=10.0, validator=more_than(0))

    # Workers and stopping.
    drain_seconds: float = field(default=3.0, validator=at_least(0))  #: open requests may finish
    worker_restart_seconds: float = field(default=0.1, validator=more_than(0))  #: first pause
    worker_restart_max_seconds: float = field(default=30.0, validator=more_than(0))
