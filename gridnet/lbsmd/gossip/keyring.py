"""The secrets that a daemon gossips with, read when it starts and when it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import ConfigError, Fault
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.gossip.config import GossipConfig, is_loopback
from gridnet.lbsmd.gossip.keys import LOOPBACK_KEY, own_secret, read_keys
from gridnet.lbsmd.gossip.wire import Seal
from gridnet.lbsmd.reload import RunInThread
from gridnet.site import Site
from gridnet.table.address import canonical_address

#: In the state directory: what this host signs with.
IDENTITY_FILE = "gossip.identity"


@frozen
class Secrets:
    """
    What makes this host one of its site, and itself.

    :ivar keys: of the site; the first seals.
    :ivar own: what this host signs with.
    """

    keys: Sequence[bytes]
    own: bytes

    @classmethod
    def read(cls, config: GossipConfig, site: Site) -> Secrets:
        """
        Those on disk; blocks.

        :raises ConfigError: a file is not as it must be, or a key is missing.
        """
        return cls(site_keys(config, site), own_secret(site.state_dir / IDENTITY_FILE))


def site_keys(config: GossipConfig, site: Site) -> Sequence[bytes]:
    """
    The keys of the site, as on disk now; blocks.

    :raises ConfigError: the key file is not as it must be, or there must be one.
    """
    because = config.leaves_loopback()
    own = canonical_address(site.section.address)
    if because in ("interface", "advertise") and (own is None or is_loopback(own)):
        found = site.section.address
        what = f"found {found!r}, but gossip leaves loopback; expected an address that others know"
        raise ConfigError([Fault("site.address", what)])
    if config.key_file:
        return read_keys(site.config.path(config.key_file))
    if because:
        raise ConfigError(
            [
                Fault(
                    "lbsmd.gossip.key_file",
                    f"empty, but {because} leaves loopback; gossip does so only with a key",
                )
            ]
        )
    return (LOOPBACK_KEY,)


@implementer(IConfigurationHolder)
class KeyRing:
    """Reads the keys of the site anew when the process is told to."""

    def __init__(
        self, config: GossipConfig, site: Site, run_in_thread: RunInThread, seal: Seal
    ) -> None:
        self._config = config
        self._site = site
        self._run_in_thread = run_in_thread
        self._seal = seal

    def reload(self) -> Deferred[tuple[Fault, ...]]:
        """Use the keys on disk from now on; those in use stay when they have a fault."""

        def refused(failure: Failure) -> tuple[Fault, ...]:
            failure.trap(ConfigError)
            error = failure.value
            return tuple(error.faults) if isinstance(error, ConfigError) else ()

        def read(keys: Sequence[bytes]) -> tuple[Fault, ...]:
            self._seal.take_keys(keys)
            return ()

        reading: Deferred[Any] = self._run_in_thread(site_keys, self._config, self._site)
        return reading.addCallbacks(read, refused)
