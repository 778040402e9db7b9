"""What the whole server knows about its own end."""

from __future__ import annotations

__all__ = ["Shutdown"]


class Shutdown:
    """Two flags that only ever go up. Set by the listener's thread, read by all others."""

    def __init__(self) -> None:
        self.draining = False
        """New work is refused; what runs goes on."""
        self.out_of_time = False
        """What still runs ends now, with an error that says so."""

    def is_out_of_time(self) -> bool:
        """Return :attr:`out_of_time`, for those who look again and again."""
        return self.out_of_time
