"""``pharos doctor``: would serving work here, and if not, what is to be done?"""

from __future__ import annotations

from .report import examine, print_report

__all__ = ["examine", "print_report"]
