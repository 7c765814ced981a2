"""Options and makeService of ``twistd gridnet`` and of each ``twistd gridnet-<component>``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.python import usage

from gridnet.component import config_classes
from gridnet.config import SiteConfig, read
from gridnet.errors import ConfigError
from gridnet.site import make_site
from gridnet.unloaded import Unloaded, leave_unloaded

#: Twisted's TLS, which brings pyOpenSSL and X.509: 10 MiB.
TLS = (
    Unloaded("twisted.protocols.tls", ("TLSMemoryBIOFactory",)),
    Unloaded("twisted.internet.ssl"),
)


class Options(usage.Options):
    """The one flag: which site file."""

    optParameters = [["config", "c", None, "The site file (TOML)."]]

    #: what ``--config`` holds, once the options are parsed
    site_config: SiteConfig

    def postOptions(self) -> None:
        """Read the site file; a fault in it is a usage error (one line a fault, status 1)."""
        if self["config"] is None:
            raise usage.UsageError("--config FILE is required")
        try:
            self.site_config = read(Path(self["config"]), config_classes())
        except ConfigError as error:
            raise usage.UsageError(str(error)) from None


def makeService(options: Options) -> IService:
    """The whole site."""
    return _compose(options, None)


def component_tap(name: str) -> tuple[type[Options], Callable[[Options], IService]]:
    """``Options`` and ``makeService`` of the component *name* alone."""

    def make_one(options: Options) -> IService:
        return _compose(options, name)

    return Options, make_one


def _compose(options: Options, only: str | None) -> IService:
    # What comes with a reactor for those who speak TLS waits until somebody does.
    leave_unloaded(TLS)
    # Imported here: choosing a reactor (twistd --reactor) must come first.
    from twisted.internet import reactor

    try:
        return _service(options.site_config, reactor, only)
    except ConfigError as error:
        raise SystemExit(str(error)) from None


def _service(config: SiteConfig, reactor: Any, only: str | None) -> IService:
    whole = _Whole()
    make_site(config, reactor, only)[1].setServiceParent(whole)
    return IService(whole)


class _Whole(MultiService):
    """The site; what it cannot use at its start ends the process with a line, not a traceback."""

    def privilegedStartService(self) -> None:
        """Called by Twisted, possibly before privileges are shed."""
        try:
            super().privilegedStartService()
        except ConfigError as error:
            raise SystemExit(str(error)) from None

    def startService(self) -> None:
        """Called by Twisted."""
        try:
            super().startService()
        except ConfigError as error:
            raise SystemExit(str(error)) from None
