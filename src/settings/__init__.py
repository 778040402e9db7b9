"""The settings: one frozen object, with a reason beside each default.

The same fields make ``pharos serve --help``, the environment variables, the keys of ``pharos.toml``
and ``docs/reference/settings.md``. Each group of them is a module here. Where values come from is
the business of ``sources``.
"""

from .field import AUTO_SIZE, default_cache_dir, parse_size
from .settings import GROUPS, STARTER, Settings

__all__ = ["AUTO_SIZE", "GROUPS", "STARTER", "Settings", "default_cache_dir", "parse_size"]
