"""
The shared-memory layout in which local clients read the table (docs/protocols/shared-memory.rst).

An image is a row of blocks: one that tells version and validity, hosts, services, and the path of
the configuration, which fills what is left.  Numbers are in the machine's byte order, addresses
in the network's.  The layout is that of heap version 1.3 of the NCBI C++ Toolkit
(``ncbi_lbsm.h``, ``ncbi_heapmgr.c``).
"""

from __future__ import annotations

import struct
from zlib import adler32

from gridnet.errors import TableError

#: How long what does not expire is good, counted from the making of an image.
VALIDITY_SECONDS = 30
#: Blocks are multiples of this.
ALIGNMENT = 16
#: Images are multiples of this, as the original daemon's are.
PAGE_OCTETS = 4096
MAX_U16 = 0xFFFF
MAX_U32 = 0xFFFFFFFF

#: Types of blocks.
HOST, SERVICE, VERSION, PENDING, CONFIG = 1, 2, 3, 4, 5
#: Flags of blocks.
USED, LAST = 1, 2

#: The head of every block: flags, size, type, until when it is good.
ENTRY = struct.Struct("=IIII")
VERSION_BLOCK = struct.Struct("=IIIIHHII4sIIHH4x")
HOST_BLOCK = struct.Struct("=IIII4sdddd6I4H4BHHIIIHHHHIHHIH2x")
SERVICE_BLOCK = struct.Struct("=IIIIId4sI4sHBBIddiiiB16sBH")
U32 = struct.Struct("=I")
#: Where those of a block, and of the image's first block, stand.
GOOD_OFFSET = 12
CHECKSUM_OFFSET = 24

#: Flags of services: how they are spoken to, and to whom they are told.
STATEFUL, SECURE = 1, 2
LOCAL, PRIVATE, INTERZONE = 1, 2, 4
#: In place of an IPv4 address that there is none of; before one that is told as IPv6.
NO_IPV4 = b"\xff\xff\xff\xff"
MAPPED = bytes(10) + b"\xff\xff"


class HeapError(TableError):
    """An image cannot be used, or a table does not fit into one."""


def checksum(image: bytes | bytearray | memoryview) -> int:
    """Adler-32 of *image* with the octets of the checksum itself taken as zero."""
    view = memoryview(image)
    value = adler32(view[:CHECKSUM_OFFSET])
    value = adler32(bytes(4), value)
    return adler32(view[CHECKSUM_OFFSET + 4 :], value)
