"""``[lbsmd]``: the daemon that fills the service table."""

from __future__ import annotations

from typing import Any, Literal

from attrs import Attribute, field, frozen

from gridnet.config import at_least, more_than
from gridnet.lbsmd.servrc.configuration import ALL_ZONES, Rules
from gridnet.table.model import DEFAULT_TIME_SECONDS


def _run_of_ones(_: object, attribute: Attribute[Any], value: int) -> None:
    low = value & -value
    if not 0 < value <= ALL_ZONES or value & (value + low):
        raise ValueError(f"expected a contiguous run of bits within 0xFFFF, found {value:#x}")


@frozen
class LbsmdConfig:
    """What the daemon reads, and how often."""

    #: main file of service definitions, relative to the site file; empty: /etc/lbsmd/servrc.cfg,
    #: or servrc.cfg in ``directory`` when that cannot be read
    servrc: str = ""
    #: where relative ``%include`` names start, relative to the site file; empty: the directory
    #: the daemon was started in
    directory: str = ""
    #: seconds between looks for changed files
    poll_seconds: float = field(default=2.0, validator=more_than(0))
    #: serve the faultless lines of faulty definitions at the start, rather than not start
    start_with_errors: bool = False
    #: the one domain that contacts of a check may be of; empty: no contacts
    mail_domain: str = ""
    default_local: bool = False  #: whether a service line without ``L=`` means ``L=yes``
    #: seconds that an entry is valid when its line has no ``T=``
    default_time_seconds: int = field(default=DEFAULT_TIME_SECONDS, validator=at_least(1))
    #: zone bits of the whole broadcast domain, a contiguous run of ones
    site_bits: int = field(default=ALL_ZONES, validator=_run_of_ones)
    site_role: Literal["plain", "try", "qa"] = "plain"  #: lets a zone line say ``try`` or ``qa``
    zone_bits: int = field(default=0, validator=at_least(0))  #: fixes the zone; 0: the file's
    #: files that one set of definitions may have, each counted as often as it is included
    max_inclusions: int = field(default=1000, validator=at_least(1))
    #: octets that the files of one set may have together
    max_octets: int = field(default=16 * 1024 * 1024, validator=at_least(1))
    #: seconds that looking up the host names of one set may take together
    resolve_seconds: float = field(default=10.0, validator=more_than(0))
    #: seconds until definitions refused for an unknown host are tried again
    resolve_retry_seconds: float = field(default=30.0, validator=more_than(0))

    def __attrs_post_init__(self) -> None:
        if self.zone_bits & ~self.site_bits:
            raise ValueError(
                f"zone_bits: expected a part of site_bits, {self.site_bits:#x}, "
                f"found {self.zone_bits:#x}"
            )

    def rules(self) -> Rules:
        """What the language leaves to the site."""
        return Rules(
            mail_domain=self.mail_domain,
            default_local=self.default_local,
            site=self.site_bits,
            site_role=self.site_role,
            zone=self.zone_bits or None,
            max_inclusions=self.max_inclusions,
            max_octets=self.max_octets,
        )
