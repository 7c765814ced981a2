"""
What can be asked on the serve socket: queries, their conditions and limits, purges, and the errors.

Source: docs/protocols/lbproxy.rst, "Queries".  How a request is written is the business of
:mod:`gridnet.lbproxy.request_xml`, what its conditions select of :mod:`gridnet.lbproxy.selection`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import Enum, Flag, auto

from attrs import frozen

from gridnet.errors import JobError, RemoteProtocolError
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.record import STATES

NO_JOBS = "no matching jobs found"
PURGED_JOB = "matching job already purged"
NO_EVENTS = "no matching events found"
NO_STATE = "no state in DB"
NO_CONDITIONS = "empty condition list"
TOO_MANY = "Query result size limit exceeded"
MIXED_GROUP = "only same attribute types supported in 'or' expressions"


class BadRequest(RemoteProtocolError):
    """The request cannot be understood; the peer sees HTTP 400 without a body."""


class QueryError(JobError):
    """
    The request is understood and has no answer; the peer sees *number* in an empty result.

    :ivar number: an ``errno``, or 1400 and above.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        self.text = text


class Operator(Enum):
    """How an attribute is compared with the value(s) of a condition."""

    EQUAL = "equal"
    LESS = "less"
    GREATER = "greater"
    WITHIN = "within"
    UNEQUAL = "unequal"
    CHANGED = "changed"  #: for notifications; matches nothing here


@frozen(slots=True)
class Condition:
    """One comparison."""

    attribute: str  #: element name in small letters
    operator: Operator
    #: one, two for WITHIN: numbers for numeric attributes, job ids, else texts
    values: tuple[int | str | JobId, ...]
    name: str = ""  #: of a user tag, or the state of a time


Groups = tuple[tuple[Condition, ...], ...]  #: all groups must hold, any condition of each


class JobFlags(Flag):
    """What a reply about jobs shows."""

    NONE = 0
    CLASSADD = auto()
    CHILDREN = auto()
    CHILDSTAT = auto()
    CHILDHIST_FAST = auto()
    CHILDHIST_THOROUGH = auto()
    NO_JOBS = auto()
    NO_STATES = auto()


class ResultMode(Enum):
    """What to do when more match than the limit (``queryRes``)."""

    UNSET = 0
    NONE = 1
    ALL = 2
    LIMITED = 3


@frozen(slots=True)
class Limit:
    """The bounds of a request."""

    soft: int = 0  #: 0: none
    mode: ResultMode = ResultMode.UNSET


@frozen(slots=True)
class JobsQuery:
    """``queryJobs``"""

    root = "edg_wll_QueryJobs"
    conditions: Groups
    flags: JobFlags = JobFlags.NONE
    limit: Limit = Limit()


@frozen(slots=True)
class EventsQuery:
    """``queryEvents``"""

    root = "edg_wll_QueryEvents"
    jobs: Groups
    events: Groups
    limit: Limit = Limit()


@frozen(slots=True)
class SequenceCodeQuery:
    """``querySequenceCode``; None: the job id could not be read."""

    root = "edg_wll_QuerySequenceCode"
    job_id: JobId | None


@frozen(slots=True)
class IndexedAttributesQuery:
    """``indexedAttrs``"""

    root = "edg_wll_GetIndexedAttributes"


class PurgeFlags(Flag):
    """What a purge does."""

    NONE = 0
    REALLY = auto()
    LIST = auto()
    SERVER_DUMP = auto()
    CLIENT_DUMP = auto()
    BACKGROUND = auto()


#: Time-outs of a purge request that are no seconds.
SERVICE_DEFAULT, NEVER = -1, -2


@frozen(slots=True)
class PurgeRequest:
    """``purgeRequest``"""

    root = "edg_wll_Purge"
    #: job ids to purge whatever their age; None: all by time-out
    jobs: tuple[JobId, ...] | None = None
    #: state number -> seconds, :data:`SERVICE_DEFAULT` or :data:`NEVER`
    timeouts: tuple[int, ...] = (SERVICE_DEFAULT,) * len(STATES)
    flags: PurgeFlags = PurgeFlags.NONE
    run_seconds: int = 0  #: spread the work over this time


Request = JobsQuery | EventsQuery | SequenceCodeQuery | IndexedAttributesQuery | PurgeRequest

#: Path of a request -> the names of its root element and of its reply's, but for their ends.
INDEXED_ATTRIBUTES = "/indexedAttrs"
ROOTS: Mapping[str, str] = {
    "/queryJobs": JobsQuery.root,
    "/queryEvents": EventsQuery.root,
    "/querySequenceCode": SequenceCodeQuery.root,
    "/purgeRequest": PurgeRequest.root,
    INDEXED_ATTRIBUTES: IndexedAttributesQuery.root,
}
PATHS = frozenset(ROOTS)
#: What the full server answers and a proxy does not.
ABSENT_PATHS = frozenset({"/dumpRequest", "/loadRequest", "/notifRequest", "/statsRequest"})


def http_status(number: int, path: str) -> int:
    """The HTTP status of a reply to *path* with error *number*."""
    if number == 0:
        return 200
    if number == errno.EINVAL and path in ("/purgeRequest", "/querySequenceCode"):
        return 579
    if number in (errno.EPERM, errno.E2BIG, errno.EINVAL, 1416):
        return 401
    if number == errno.ENOENT:
        return 404
    if number == errno.EIDRM:
        return 410
    return 500
