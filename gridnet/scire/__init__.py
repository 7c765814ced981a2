"""Scire: a job server for fleets of machines that can only call out (docs/protocols/scire.rst)."""
