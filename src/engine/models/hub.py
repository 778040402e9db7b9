"""Fetch a model from the hub, through mlx-lm's own download.

The hub's library draws the progress bar, resumes a connection that is cut, and
keeps each finished file: a pull that was killed goes on with the next file.
What it does not do is read the files again; that is done here, against their
hashes.

Importing this module imports mlx and the hub's library: never in the server process.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from huggingface_hub import errors as hub_errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from mlx_lm.utils import _download

from ...resilience.errors import ModelError, NetworkError
from ...resilience.retry import transient_file_error
from . import hub_cache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ...resilience.error_handler import ErrorHandler

__all__ = ["pull_hub"]


def pull_hub(
    repository: str, *, report: Callable[[str], None], progress: bool, errors: ErrorHandler
) -> Path:
    """Download a repository's model files, or what is missing of them, and verify all.

    A damaged file is named, deleted and fetched once more. The caller holds the
    lock that keeps two pulls of one repository apart.

    Args:
        repository: ``organisation/name``.
        report: Gets a line for each step.
        progress: Whether to draw a progress bar on standard error.
        errors: Tries again what the network may have cut.

    Returns:
        The snapshot's directory.

    Raises:
        ModelError: It does not exist, needs access that is not given, the
            network or the disk fails, or a file is damaged and stays so.
    """
    if not progress and not are_progress_bars_disabled():
        disable_progress_bars()
    hub_cache.remove_leftovers(repository)
    report(f"Fetching {repository} from the hub.")
    directory = _fetch(repository, errors)
    damaged = _damaged(directory, errors)
    if damaged:
        directory = _fetch_again(repository, damaged, report, errors)
    return _checked(repository, directory)


def _fetch_again(
    repository: str, damaged: list[Path], report: Callable[[str], None], errors: ErrorHandler
) -> Path:
    """Delete damaged files and fetch them; once, as a hub that sends them damaged goes on so."""
    names = ", ".join(path.name for path in damaged)
    if _is_offline():
        raise ModelError(
            f"{names} of {repository} is damaged: its hash is wrong. Pull it again with a network; "
            "HF_HUB_OFFLINE is set now."
        )
    report(f"Damaged, its hash is wrong: {names}. Fetching it again.")
    for path in damaged:
        hub_cache.forget(path)
    directory = _fetch(repository, errors)
    damaged = _damaged(directory, errors)
    if damaged:
        raise ModelError(
            f"{damaged[0].name} of {repository} is damaged even after it was fetched again: the "
            "hub or a proxy sends something else than its hash says."
        )
    return directory


def _damaged(directory: Path, errors: ErrorHandler) -> list[Path]:
    return errors.retry_with_backoff(
        lambda: hub_cache.damaged_files(directory),
        operation="file access",
        on=transient_file_error,
    )


def _fetch(repository: str, errors: ErrorHandler) -> Path:
    """Download with retries; what is raised in the end says what to do."""
    try:
        return errors.retry_with_backoff(
            lambda: _download(repository), operation="download", on=_may_pass
        )
    except NetworkError as error:
        cause = error.__cause__
        assert isinstance(cause, Exception)  # the last attempt's
        raise _explained(repository, cause) from cause
    except Exception as error:
        told = _explained(repository, error)
        if told is error:
            raise
        raise told from error


def _may_pass(error: Exception) -> bool:
    """Whether the same download may work in a moment."""
    if isinstance(error, hub_errors.LocalEntryNotFoundError):
        return not _is_offline()
    if isinstance(error, hub_errors.HfHubHTTPError):
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", 0)
        return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR
    return (
        _is_of_http_client(error)
        or isinstance(error, ConnectionError | TimeoutError)
        or transient_file_error(error)
    )


def _is_of_http_client(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")


def _explained(repository: str, failure: Exception) -> Exception:
    """Return the error for the operator; one that is not foreseen comes back as it is."""
    if isinstance(failure, hub_errors.GatedRepoError):
        return ModelError(f"{repository} is gated: ask for access on its page, then set HF_TOKEN.")
    if isinstance(failure, hub_errors.RepositoryNotFoundError):
        return ModelError(
            f"The hub has no repository {repository}, or it is private and HF_TOKEN is not set."
        )
    if isinstance(failure, hub_errors.LocalEntryNotFoundError):
        advice = "HF_HUB_OFFLINE is set." if _is_offline() else "Check the network, then try again."
        return NetworkError(
            f"{repository} is not complete on this machine, and the hub cannot be reached. {advice}"
        )
    if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            f"The disk of {hub_cache.cache_directory()} is full: make room, or choose another "
            "place with HF_HUB_CACHE."
        )
    # The hub's library raises its HTTP client's own errors too.
    if isinstance(failure, OSError) or _is_of_http_client(failure):
        return NetworkError(_INTERRUPTED.format(repository))
    return failure


_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500
_INTERRUPTED = (
    "The download of {} was interrupted. Pull it again: finished files are not fetched twice."
)


def _checked(repository: str, directory: Path) -> Path:
    if hub_cache.complete_snapshot(repository) is None:
        raise ModelError(
            f"{repository} holds no model that mlx-lm loads: it needs config.json, "
            "model*.safetensors and a tokenizer."
        )
    return directory


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
