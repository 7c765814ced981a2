"""
Benchmarks of gridnet against its peers: ``python -m benchmarks SUBJECT [--json] [--seconds N]``.

Every figure stands beside that of a peer measured in the same run, since only their ratio means
anything on a shared machine.  A peer that is not installed is named and skipped.
"""
