"""The database of the job server: one interface, two backends (docs/protocols/scire.rst, Store)."""
