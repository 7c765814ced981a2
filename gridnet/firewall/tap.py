"""``twistd gridnet-firewall``."""

from gridnet.tap import component_tap

Options, makeService = component_tap("firewall")
