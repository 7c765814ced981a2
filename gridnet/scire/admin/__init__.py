"""``admin.*``: the calls of people and their programs (docs/protocols/scire.rst)."""
