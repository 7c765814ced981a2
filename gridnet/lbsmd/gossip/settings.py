"""Times and bounds of gossip."""

from __future__ import annotations

from attrs import frozen


@frozen
class GossipTimes:
    """Times in seconds and bounds; the times are those of Serf's LAN profile."""

    probe_interval: float = 1.0  #: between two probes
    probe_timeout: float = 0.5  #: for the direct answer, before others are asked
    probe_retry: float = 0.04  #: until a probe that is not answered is sent again
    gossip_interval: float = 0.2  #: between two rounds of news, while there are any
    exchange_interval: float = 30.0  #: between two comparisons with another host
    exchange_again: float = 1.0  #: until the next comparison after one that found a difference
    reconnect_interval: float = 5.0  #: between two attempts to reach hosts that are gone
    forget_seconds: float = 86400.0  #: a dead host is kept in mind so long
    fanout: int = 3  #: hosts a round of news goes to
    burst_packets: int = 8  #: packets to each of them, at most, while much is waiting
    indirect_probes: int = 3  #: hosts asked to probe one that does not answer
    confirmers: int = 5  #: hosts that probe a suspected one out of turn, on average
    suspicion_multiplier: float = 4.0  #: shortest suspicion, in probe intervals times log10(hosts)
    suspicion_stretch: float = 6.0  #: longest suspicion, in shortest ones
    retransmit_multiplier: int = 4  #: tellings of a rumour at most, times log10(hosts)
    cool_after: int = 4  #: a rumour heard back so often gets no packets of its own any more
    drop_after: int = 8  #: a rumour heard back so often is not told any more
    max_health: int = 8  #: times our own time-outs are stretched at most
    packet_octets: int = 1200  #: room for messages in one packet
    max_hosts: int = 20000  #: hosts known at a time
    max_entries: int = 1000  #: entries of one host
    max_rumours: int = 10000  #: news waiting
    max_exchange_packets: int = 64  #: packets a second in answer to comparisons
    max_probes: int = 1000  #: probes made for others at a time
    stopped_after: float = 0.25  #: a call of tick later than this: this process did not run
    lifeguard: bool = True  #: False: plain SWIM, to compare with
