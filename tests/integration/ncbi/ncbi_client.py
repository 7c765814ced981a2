#!/usr/bin/env python3
"""Drive a real NCBI CONNECT client library through its public C API.

The library does all the talking on the wire; this file only calls it
(ctypes) and reports what came out, one JSON object a line on stdout.

  ncbi_client.py [--lib LIB] lookup  NAME [options]
  ncbi_client.py [--lib LIB] connect NAME [options]   (payload on stdin)
  ncbi_client.py [--lib LIB] info                     (descriptors on stdin)
  ncbi_client.py [--lib LIB] version

LIB is   c    Debian libncbi6      (NCBI C Toolkit 6.1.20170106), the default
         cxx  Debian ncbi-blast+   (NCBI C++ Toolkit, libxconnect.so)
         PATH of any other shared build of the CONNECT library
Where the client looks for its dispatcher is told by the library's own
environment variables (CONN_HOST, CONN_PORT, CONN_PATH, ...).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

TYPES = {
    "ANY": 0,
    "NCBID": 1,
    "STANDALONE": 2,
    "HTTP_GET": 4,
    "HTTP_POST": 8,
    "HTTP": 12,
    "FIREWALL": 16,
    "DNS": 32,
}
# these flag values are the same in every release of the library seen so far
F_REVERSE_DNS = 0x00800000
F_DOWN, F_SUPPRESSED = 0x08000000, 0x40000000
LOCALHOST = 0xFFFFFFFF
READ_PLAIN, WRITE_PERSIST = 1, 2
EV_OPEN, EV_WRITE, EV_RW, EV_CLOSE = 0, 2, 3, 4
LOG_TRACE, LOG_FATAL = 0, 6

P, U, S, I = ctypes.c_void_p, ctypes.c_uint, ctypes.c_char_p, ctypes.c_int


class Timeout(ctypes.Structure):
    _fields_ = [("sec", U), ("usec", U)]


def say(**kw: Any) -> None:
    print(json.dumps(kw), flush=True)


def cxx_library() -> str | None:
    """The private library of the ncbi-blast+ package, by way of blastn."""
    program = shutil.which("blastn")
    if not program:
        return None
    out = subprocess.run(["ldd", program], stdout=subprocess.PIPE).stdout
    found = re.search(rb"libxconnect\.so\S* => (\S+)", out)
    return os.fsdecode(found[1]) if found is not None else None


class Library:
    def __init__(self, which: str) -> None:
        env = os.environ
        path: str | None
        ssl_path: str | None
        if which == "c":
            path = env.get("NCBI_C_LIB") or "libncbi.so.6"
            ssl_path = env.get("NCBI_C_SSL_LIB") or "libconnssl.so.6"
        elif which == "cxx":
            path = env.get("NCBI_CXX_LIB") or cxx_library()
            ssl_path = path
        else:
            path = ssl_path = which
        if not path:
            raise OSError(f"library for {which!r} is not installed")
        self.path = path
        self.lib = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self.ssl = self.lib if ssl_path == path else ctypes.CDLL(ssl_path, mode=ctypes.RTLD_GLOBAL)
        self.libc = ctypes.CDLL(None)
        sig = {
            "SERV_OpenP": (
                P,
                [S, U, U, ctypes.c_ushort, ctypes.c_double, P, P, ctypes.c_size_t, I, S, S],
            ),
            "SERV_GetNextInfo": (P, [P]),
            "SERV_MapperName": (S, [P]),
            "SERV_CurrentName": (S, [P]),
            "SERV_Close": (None, [P]),
            "SERV_Reset": (None, [P]),
            "SERV_WriteInfo": (P, [P]),
            "SERV_ReadInfo": (P, [S]),
            "SERV_Penalize": (I, [P, ctypes.c_double]),
            "SERV_AddFirewallPort": (I, [ctypes.c_ushort]),
            "ConnNetInfo_Create": (P, [S]),
            "ConnNetInfo_Destroy": (None, [P]),
            "ConnNetInfo_AppendArg": (I, [P, S, S]),
            "SERVICE_CreateConnectorEx": (P, [S, U, P, P]),
            "CONN_Create": (I, [P, P]),
            "CONN_Close": (I, [P]),
            "CONN_Write": (I, [P, S, ctypes.c_size_t, P, I]),
            "CONN_Read": (I, [P, P, ctypes.c_size_t, P, I]),
            "CONN_Flush": (I, [P]),
            "CONN_SetTimeout": (I, [P, I, P]),
            "CONN_GetType": (S, [P]),
            "CONN_Description": (P, [P]),
            "CONN_GetSOCK": (I, [P, P]),
            "SOCK_Shutdown": (I, [P, I]),
            "IO_StatusStr": (S, [I]),
            "SOCK_SetupSSL": (None, [P]),
            "CORE_SetLOGFILE_Ex": (None, [P, I, I, I]),
        }
        for name, (res, args) in sig.items():
            fn = getattr(self.lib, name)
            fn.restype, fn.argtypes = res, args
            setattr(self, name, fn)
        for name in ("NcbiSetupTls", "NcbiSetupGnuTls"):
            fn = getattr(self.ssl, name, None)
            if fn is not None:
                self.SOCK_SetupSSL(ctypes.cast(fn, P))
                break
        if env.get("NCBI_CLIENT_LOG"):
            stderr = P.in_dll(self.libc, "stderr")
            self.CORE_SetLOGFILE_Ex(stderr, LOG_TRACE, LOG_FATAL, 0)

    def text(self, ptr: int | None) -> str | None:
        """Take a malloc()ed C string and free it."""
        if not ptr:
            return None
        out = ctypes.string_at(ptr).decode("latin-1")
        self.libc.free(P(ptr))
        return out

    if TYPE_CHECKING:  # the functions are set by name

        def __getattr__(self, name: str) -> Any: ...

    def status(self, code: int) -> str:
        text: bytes = self.IO_StatusStr(code)
        return text.decode()


def type_mask(words: str | None) -> int:
    mask = 0
    for word in (words or "").split(","):
        if word:
            mask |= TYPES[word.upper()]
    return mask


def lookup(lib: Library, opt: argparse.Namespace) -> int:
    flags = type_mask(opt.types)
    if opt.ok_down:
        flags |= F_DOWN
    if opt.ok_suppressed:
        flags |= F_SUPPRESSED
    if opt.reverse_dns:
        flags |= F_REVERSE_DNS
    name = opt.name.encode()
    skip = [lib.SERV_ReadInfo(s.encode()) for s in opt.skip]
    if not all(skip):
        say(error="unreadable --skip")
        return 2
    array = (P * max(1, len(skip)))(*skip)
    net = lib.ConnNetInfo_Create(name)
    start = time.monotonic()
    # the library keeps these two pointers, so they must outlive the call
    arg, val = [(part.encode() or None) for part in (opt.affinity or "").partition("=")[::2]]
    it = lib.SERV_OpenP(
        name, flags, LOCALHOST, 0, 0.0, net, array, len(skip), 1 if opt.external else 0, arg, val
    )
    lib.ConnNetInfo_Destroy(net)
    count = 0
    if it:
        say(mapper=(lib.SERV_MapperName(it) or b"").decode())
        while count < opt.max:
            info = lib.SERV_GetNextInfo(it)
            if not info:
                break
            count += 1
            say(
                info=lib.text(lib.SERV_WriteInfo(info)),
                name=(lib.SERV_CurrentName(it) or b"").decode(),
            )
            if opt.penalize is not None:
                say(penalized=bool(lib.SERV_Penalize(it, opt.penalize)))
        if opt.reset:
            lib.SERV_Reset(it)
            again = lib.SERV_GetNextInfo(it)
            say(after_reset=lib.text(lib.SERV_WriteInfo(again)) if again else None)
        lib.SERV_Close(it)
    say(count=count, opened=bool(it), seconds=round(time.monotonic() - start, 3))
    return 0 if count else 1


def connect(lib: Library, opt: argparse.Namespace) -> int:
    name = opt.name.encode()
    payload = sys.stdin.buffer.read() if not opt.no_payload else b""
    for port in opt.fw_port:
        lib.SERV_AddFirewallPort(port)
    net = lib.ConnNetInfo_Create(name)
    for pair in opt.arg:
        key, eq, val = pair.partition("=")
        lib.ConnNetInfo_AppendArg(net, key.encode(), val.encode() if eq else None)
    start = time.monotonic()
    connector = lib.SERVICE_CreateConnectorEx(name, type_mask(opt.types), net, None)
    lib.ConnNetInfo_Destroy(net)
    if not connector:
        say(
            stage="create",
            status="no connector (service not found)",
            seconds=round(time.monotonic() - start, 3),
        )
        return 1
    conn = P()
    code = lib.CONN_Create(connector, ctypes.byref(conn))
    if code:
        say(stage="create", status=lib.status(code))
        return 1
    tmo = Timeout(opt.timeout, 0)
    for event in (EV_OPEN, EV_RW, EV_CLOSE):
        lib.CONN_SetTimeout(conn, event, ctypes.byref(tmo))
    n = ctypes.c_size_t()
    if payload:
        code = lib.CONN_Write(conn, payload, len(payload), ctypes.byref(n), WRITE_PERSIST)
        if code:
            say(
                stage="write",
                status=lib.status(code),
                sent=n.value,
                seconds=round(time.monotonic() - start, 3),
            )
            lib.CONN_Close(conn)
            return 1
    if opt.half_close:
        sock = P()
        if lib.CONN_GetSOCK(conn, ctypes.byref(sock)) == 0 and sock:
            lib.CONN_Flush(conn)
            lib.SOCK_Shutdown(sock, EV_WRITE)
    got = b""
    buf = ctypes.create_string_buffer(65536)
    while True:
        want = len(buf)
        if opt.reply_bytes is not None:
            want = min(want, opt.reply_bytes - len(got))
            if want <= 0:
                status = "Success"
                break
        code = lib.CONN_Read(conn, buf, want, ctypes.byref(n), READ_PLAIN)
        got += buf.raw[: n.value]
        if code:
            status = lib.status(code)
            break
    kind = lib.CONN_GetType(conn)
    descr = lib.text(lib.CONN_Description(conn))
    lib.CONN_Close(conn)
    say(
        stage="done",
        status=status,
        sent=len(payload),
        received=len(got),
        reply=got.decode("latin-1"),
        type=(kind or b"").decode(),
        description=descr,
        seconds=round(time.monotonic() - start, 3),
    )
    return 0


def info(lib: Library) -> int:
    """Read descriptors the way the library does, write them its way."""
    for line in sys.stdin:
        line = line.rstrip("\n")
        ptr = lib.SERV_ReadInfo(line.encode("latin-1"))
        say(given=line, info=lib.text(lib.SERV_WriteInfo(ptr)) if ptr else None)
    return 0


def main() -> int:
    top = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    top.add_argument("--lib", default=os.environ.get("NCBI_CLIENT_LIB", "c"))
    sub = top.add_subparsers(dest="command", required=True)
    p = sub.add_parser("lookup")
    p.add_argument("name")
    p.add_argument("--types", help="comma separated, default ANY")
    p.add_argument("--max", type=int, default=20)
    p.add_argument(
        "--skip", action="append", default=[], help="server descriptor that must not come back"
    )
    p.add_argument("--external", action="store_true")
    p.add_argument("--ok-down", action="store_true")
    p.add_argument("--ok-suppressed", action="store_true")
    p.add_argument("--reverse-dns", action="store_true")
    p.add_argument("--affinity", help="arg=val")
    p.add_argument("--penalize", type=float)
    p.add_argument("--reset", action="store_true")
    p = sub.add_parser("connect")
    p.add_argument("name")
    p.add_argument("--types")
    p.add_argument("--arg", action="append", default=[])
    p.add_argument("--fw-port", action="append", type=int, default=[])
    p.add_argument("--timeout", type=int, default=10)
    p.add_argument("--no-payload", action="store_true")
    p.add_argument(
        "--half-close", action="store_true", help="shut the socket for writing after the payload"
    )
    p.add_argument("--reply-bytes", type=int, help="stop reading after that many bytes")
    sub.add_parser("info")
    sub.add_parser("version")
    opt = top.parse_args()
    try:
        lib = Library(opt.lib)
    except (OSError, AttributeError) as exc:
        say(error=f"cannot load {opt.lib}: {exc}")
        return 3
    if opt.command == "version":
        say(library=lib.path, real=os.path.realpath(lib.path))
        return 0
    if opt.command == "info":
        return info(lib)
    return lookup(lib, opt) if opt.command == "lookup" else connect(lib, opt)


if __name__ == "__main__":
    sys.exit(main())
