"""Zones of a site as bit masks (docs/protocols/lbsmd-config.rst, Zone and site)."""

from __future__ import annotations


def zone_bits(text: str, site: int, role: str = "plain") -> int | None:
    """
    The bits that ``@ text`` stands for.

    :param site: bits of the whole broadcast domain, a contiguous run of ones.
    :param role: ``plain``, ``try`` or ``qa``: what the site is for.
    :returns: a non-empty subset of *site*; None: *text* stands for none.
    """
    low = site & -site
    word = text.lower()
    if "prod" in word:
        bits = low
    elif word == "dev":
        bits = low << 1
    elif word in ("try", "qa"):
        bits = low if word == role else 0
    elif word.startswith("0x"):
        bits = int(word, 16)
    elif word.isascii() and word.isdecimal():
        number = int(word)
        bits = number * low if _subset(number * low, site) else number
    else:
        return None
    return bits if _subset(bits, site) else None


def _subset(bits: int, site: int) -> bool:
    return bits != 0 and bits & ~site == 0
