"""``twistd gridnet-status``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("status")
