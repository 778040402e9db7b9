"""The HTTP side: the OpenAI API on Flask and waitress.

Begin with :func:`serve`; :func:`create_app` has the routes. A request goes
through ``generate`` (read, submit, answer), ``families`` (chat and legacy
completions, each a pair of translations) and ``run`` (its events).
"""

from __future__ import annotations

from .app import create_app
from .options import RequestDefaults, ServerOptions
from .sd_notify import SdNotify
from .serving import serve

__all__ = ["RequestDefaults", "SdNotify", "ServerOptions", "create_app", "serve"]
