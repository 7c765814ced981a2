"""Where the parts of a demo site go: one directory, one block of ports."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

#: The dispatcher takes the first port; the next nine stay free for the tools of whoever
#: watches the demo (a TLS front, extra servers).
FIRST_FREE_OFFSET = 10
BLOCK_PORTS = 100

#: Addresses of the demo's hosts: itself, and the one beside it.
ADDRESS, SECOND_ADDRESS = "127.0.0.1", "127.0.0.2"


@frozen
class DemoPlan:
    """
    What a component's demo section is made from.

    Offsets in use: 0 dispatcher; 10 status; 20-29 services of the demo; 30-39 lbsmd;
    40-49 scire; 50-59 mirror; 60-70 firewall; 71-80 relay; 81-99 launcher.
    """

    directory: Path  #: all state lives here
    port_base: int
    servrc: Path  #: the service definitions to serve
    python: str  #: interpreter for child processes
    firewall_ports: tuple[int, int] | None = None  #: first and last, when told
    heap: bool = False  #: publish shared memory under the real keys

    @property
    def own_servrc(self) -> Path:
        """Where the demo's own service definitions are, if it serves those."""
        return self.directory / "servrc.cfg"

    def port(self, offset: int) -> int:
        """
        The port *offset* places above the base.

        :raises ValueError: outside the demo's block of ports.
        """
        if not (offset == 0 or FIRST_FREE_OFFSET <= offset < BLOCK_PORTS):
            raise ValueError(f"port offset {offset} is not the demo's to use")
        return self.port_base + offset
