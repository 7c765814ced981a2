"""The faults of the interface, as docs/protocols/scire.rst (Faults) lists them.  Pure."""

from __future__ import annotations

from enum import IntEnum

from gridnet.errors import JobError


class FaultCode(IntEnum):
    """``faultCode`` of an XML-RPC fault; the number is the interface."""

    NOT_WELL_FORMED = -32700
    NOT_XMLRPC = -32600
    UNKNOWN_METHOD = -32601
    WRONG_PARAMETERS = -32602
    INTERNAL = -32603
    NOT_AUTHENTICATED = 1000
    ENROLMENT_PENDING = 1001
    DISABLED = 1002
    CERTIFICATE_ENDED = 1003
    IDENTITY_USED_TWICE = 1004
    PERMISSION_DENIED = 1010
    UNKNOWN_CLIENT = 1020
    UNKNOWN_JOB = 1021
    UNKNOWN_RUN = 1022
    UNKNOWN_GROUP = 1023
    UNKNOWN_USER = 1024
    UNKNOWN_RULE = 1025
    UNKNOWN_ENROLMENT = 1026
    RUN_WITHDRAWN = 1030
    UNKNOWN_RECEIPT = 1031
    FOREIGN = 1032
    TRANSITION = 1033
    DIGEST = 1034
    INVALID_DEFINITION = 1040
    INVALID_STATUS_FILE = 1041
    TOO_LARGE = 1042
    UNSUPPORTED_VERSION = 1043
    CONFLICT = 1050
    DEPENDENCY_CYCLE = 1051
    IN_USE = 1052
    BUSY = 1060
    GOING_DOWN = 1061
    DATABASE_UNAVAILABLE = 1062
    TOO_MANY_CALLS = 1070
    ENROLMENT_CLOSED = 1080
    BAD_TOKEN = 1081
    REQUEST_REFUSED = 1082


#: Faults after which a client asks the next server of its list.
TRY_ANOTHER_SERVER = frozenset(
    {FaultCode.GOING_DOWN, FaultCode.DATABASE_UNAVAILABLE, FaultCode.INTERNAL}
)
#: Faults that name misuse of an identity or of the interface; each is audited.
SUSPICIOUS = frozenset(
    {
        FaultCode.NOT_AUTHENTICATED,
        FaultCode.CERTIFICATE_ENDED,
        FaultCode.IDENTITY_USED_TWICE,
        FaultCode.FOREIGN,
        FaultCode.BAD_TOKEN,
    }
)


class ScireFault(JobError):
    """
    A call is answered with a fault; nothing that the call did is kept.

    :ivar code: one of :class:`FaultCode`; an integer when a peer sent an unknown one.
    :ivar text: for people.
    :ivar retry_after: seconds after which to call again; None: not said.
    """

    def __init__(self, code: int, text: str, retry_after: int | None = None) -> None:
        self.code = code
        self.text = text
        self.retry_after = retry_after
        super().__init__(f"{code}: {text}")

    @property
    def fault_string(self) -> str:
        """``faultString`` on the wire."""
        if self.retry_after is None:
            return self.text
        return f"{self.text} [retry-after={self.retry_after}]"
