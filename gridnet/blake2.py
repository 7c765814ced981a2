"""
BLAKE2b, Python's own.

The same function as :func:`hashlib.blake2b`; importing :mod:`hashlib` loads the system's OpenSSL
for what it has besides, which is 4 MiB of memory.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # a Python that has it elsewhere
    from hashlib import blake2b

__all__ = ["blake2b"]
