"""Waiting for what another program shows when it is ready to."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["fetch_json", "until"]

_T = TypeVar("_T")


def until(
    read: Callable[[], _T],
    accept: Callable[[_T], bool] = bool,
    *,
    seconds: float = 40.0,
    what: str = "",
) -> _T:
    """Read again and again until what is read is accepted, and return it.

    A refused connection or an answer that is no 200 counts as not yet.

    Args:
        read: May take some seconds itself.
        accept: Whether that was it.
        seconds: How long to try.
        what: Is waited for; stands in the failure beside what was read last.
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = found = read()
            if accept(found):
                return found
        except (OSError, ValueError) as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}; last: {last!r:.2000}")


def fetch_json(
    url: str, parameters: Mapping[str, str] | None = None, *, timeout: float = 10.0
) -> Any:
    """Return the decoded body of a GET.

    Raises:
        OSError: Nobody answers, or with another status than 200.
    """
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    try:
        with urllib.request.urlopen(url + query, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"{error.code}: {error.read(500)!r}") from None
