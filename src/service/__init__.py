"""Files for service managers: ``pharos service print`` renders them for this machine.

:class:`Service` is what both kinds need to know; :func:`systemd_unit` and
:func:`launchd_plist` write it down.
"""

from __future__ import annotations

from .launchd import launchd_plist
from .service import Service, service_of
from .systemd import systemd_unit

__all__ = ["Service", "launchd_plist", "service_of", "systemd_unit"]
