"""``[lbsmd]``: the daemon that fills the service table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from attrs import Attribute, field, frozen

from gridnet.config import at_least, more_than
from gridnet.lbsmd.servrc.configuration import Rules


def _run_of_ones(_: object, attribute: Attribute[Any], value: int) -> None:
    low = value & -value
    if not 0 < value < 1 << 16 or value & (value + low):
        raise ValueError(f"expected a contiguous run of bits within 0xFFFF, found {value:#x}")


@frozen
class LbsmdConfig:
    """What the daemon reads, and how often."""

    servrc: Path = Path("servrc.cfg")  #: main file of definitions; relative to the site file
    #: directory that ``%include`` names start from; relative to the site file
    start_dir: Path = Path()
    poll_seconds: float = field(default=2.0, validator=more_than(0))  #: look for changed files
    mail_domain: str = "localhost"  #: the one domain that contacts of a check may be of
    site_bits: int = field(default=1, validator=_run_of_ones)  #: bits of the broadcast domain
    site_role: Literal["plain", "try", "qa"] = "plain"
    zone_bits: int = field(
        default=0, validator=at_least(0)
    )  #: fixes this host's zone; 0: the file's
    #: serve the faultless lines at the first start, rather than refuse to start
    start_with_faults: bool = False

    def rules(self) -> Rules:
        """What the language leaves to the site."""
        return Rules(self.mail_domain, self.site_bits, self.site_role, self.zone_bits or None)
