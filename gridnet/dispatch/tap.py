"""``twistd gridnet-dispatch``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("dispatch")
