"""What a machine has to offer before a server starts on it: addresses, packages, access.

Each module looks at one thing and changes nothing; ``config`` puts them together.
"""

from __future__ import annotations

from .errors import DependencyError, ValidationError

__all__ = ["DependencyError", "ValidationError"]
