"""Whether strangers could use the model, or look at the server, as it is about to be served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sources import ConfigurationError, Problem
from .address import is_loopback

if TYPE_CHECKING:
    from ..settings import Settings

__all__ = ["check_access", "exposures"]

_MEND = (
    "set PHAROS_API_KEY or --api-keys-file, or listen on 127.0.0.1; where the network itself keeps "
    "strangers out, --allow-open-network"
)
_OPERATIONS_MEND = (
    "set PHAROS_METRICS_API_KEY or an API key, or listen on 127.0.0.1; where the network itself "
    "keeps strangers out, --allow-open-network"
)


def exposures(settings: Settings) -> tuple[Problem, ...]:
    """Return who could come in by which address; nothing where nobody but this machine can.

    The port for operations has no model, and its probes ask for no key. So any key will do there:
    it shows that the operator has thought of strangers.
    """
    if settings.api_key is not None or settings.api_keys_file is not None:
        return ()
    found = []
    if not is_loopback(settings.host):
        text = "everybody who reaches it could use the model, as no key is asked for"
        found.append(Problem(subject="host", text=f"{settings.host}: {text}; {_MEND}"))
    operations = settings.ops_port is not None and settings.metrics_api_key is None
    if operations and not is_loopback(settings.ops_host):
        text = "everybody who reaches it could see how the server is, and there is no key"
        found.append(
            Problem(subject="ops_host", text=f"{settings.ops_host}: {text}; {_OPERATIONS_MEND}")
        )
    return tuple(found)


def check_access(settings: Settings) -> None:
    """Refuse addresses on a network without a key, unless the operator wants just that.

    Raises:
        ConfigurationError: Strangers could come in, and nobody said that they may.
    """
    found = () if settings.allow_open_network else exposures(settings)
    if found:
        raise ConfigurationError(found)
