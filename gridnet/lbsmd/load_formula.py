"""
How a host's load becomes its two statuses (docs/protocols/host-load.rst).

The daemon of the "Load Balancing" chapter of the C++ Toolkit book tells no formula, only rows of
figures.  :func:`book` is a fit to them: every printed row comes out within the rounding of the
loads that are printed beside it.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

#: Status that each processor of an idle host adds.
PROCESSOR_STATUS = 1000.0
#: How steeply the smoothed status falls with the load average over one minute.
AVERAGE_STEEPNESS = 148.0


@frozen
class LoadFigures:
    """What a formula may go by."""

    average: float  #: load average over one minute, 0 or more
    instant: float  #: processors busy since the last look, 0 or more
    processors: int  #: logical, 1 or more


@frozen
class Statuses:
    """How much work a host can take; higher is better."""

    smoothed: float  #: for servers marked ``Regular``
    instant: float  #: for servers marked ``Blast``


#: A formula that a site may bring (``load_formula`` of ``[lbsmd]``).
Formula = Callable[[LoadFigures], Statuses]


def book(figures: LoadFigures) -> Statuses:
    """
    The fit to the chapter's rows.

    With *n* processors: ``1000 n / (1 + 148 average)``, and ``1000 n / (1 + instant / n)``.  The
    first makes a host nearly invisible as soon as it works at all, which is what the rows show;
    the second falls to half when all processors are busy.
    """
    idle = PROCESSOR_STATUS * figures.processors
    return Statuses(
        idle / (1.0 + AVERAGE_STEEPNESS * figures.average),
        idle / (1.0 + figures.instant / figures.processors),
    )


def even(figures: LoadFigures) -> Statuses:
    """
    A gentler formula: both statuses fall to half when there is one task for each processor.

    With *n* processors: ``1000 n / (1 + load / n)``.
    """
    idle = PROCESSOR_STATUS * figures.processors
    return Statuses(
        idle / (1.0 + figures.average / figures.processors),
        idle / (1.0 + figures.instant / figures.processors),
    )


#: Formulas that have a name.
FORMULAS: dict[str, Formula] = {"book": book, "even": even}
