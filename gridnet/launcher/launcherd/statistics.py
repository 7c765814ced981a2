"""What a launcher has done so far."""

from __future__ import annotations

from attrs import define


@define
class Statistics:
    """Counts connections, from their beginning to their program's end."""

    connections: int = 0
    running: int = 0
    most: int = 0  #: at once
    failures: int = 0  #: programs that could not be started, or ended badly
    ended: int = 0
    seconds: float = 0.0  #: of all that have ended
    longest: float = 0.0  #: seconds

    def began(self) -> None:
        """A program has started."""
        self.connections += 1
        self.running += 1
        self.most = max(self.most, self.running)

    def failed(self) -> None:
        """One could not be started."""
        self.connections += 1
        self.failures += 1

    def over(self, seconds: float, badly: bool) -> None:
        """A program has ended after *seconds*."""
        self.running -= 1
        self.ended += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        self.failures += badly

    def text(self) -> str:
        """One line."""
        mean = self.seconds / self.ended if self.ended else 0.0
        return (
            f"connections={self.connections} running={self.running} most={self.most} "
            f"mean={mean:.3f} longest={self.longest:.3f} failures={self.failures}"
        )
