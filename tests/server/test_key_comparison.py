"""Keys are compared by ``hmac.compare_digest`` alone, so that the time says nothing of them."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.resilience.errors import AuthenticationError, MetricsForbiddenError
from mlx_pharos.server.auth import check_api_key
from mlx_pharos.telemetry.legacy import check_metrics_access

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES = ("first", "second", "third")
_KEYS = tuple(ApiKey.of(name, f"key of the {name}") for name in _NAMES)

Comparisons = list[tuple[bytes, bytes]]


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> Comparisons:
    """What is compared, in its order; the comparison is the real one."""
    compared: Comparisons = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    return compared


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize("sent", [*(f"key of the {name}" for name in _NAMES), "k", "x" * 5000])
def test_every_key_is_compared_whichever_it_is(sent: str, comparisons: Comparisons) -> None:
    """The first that fits ends nothing, and digests have one length, whatever was sent."""
    try:
        assert sent == f"key of the {_NAMES[check_api_key(f'Bearer {sent}', _KEYS) - 1]}"
    except AuthenticationError:
        assert sent not in {f"key of the {name}" for name in _NAMES}
    assert [(_digest(sent), key.digest) for key in _KEYS] == comparisons


@pytest.mark.parametrize("sent", ["the key", "the ke", "", "x" * 5000])
def test_the_metrics_key_is_compared_once(sent: str, comparisons: Comparisons) -> None:
    """As a digest, the empty one too."""
    try:
        check_metrics_access("the key", authorization=f"Bearer {sent}", address="192.0.2.1")
        assert "the key" == sent
    except MetricsForbiddenError:
        assert "the key" != sent
    assert [(_digest(sent), _digest("the key"))] == comparisons


def _accepts_api_key(sent: str) -> bool:
    try:
        check_api_key(f"Bearer {sent}", _KEYS)
    except AuthenticationError:
        return False
    return True


def _accepts_metrics_key(sent: str) -> bool:
    try:
        check_metrics_access(
            "key of the second", authorization=f"Bearer {sent}", address="127.0.0.1"
        )
    except MetricsForbiddenError:
        return False
    return True


@pytest.mark.parametrize("accepts", [_accepts_api_key, _accepts_metrics_key])
def test_nothing_else_decides(
    accepts: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it says that they are equal any key passes, and where it says that they are not, none."""
    assert (True, False) == (accepts("key of the second"), accepts("wrong"))
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: True)
    assert accepts("wrong")
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)
    assert not accepts("key of the second")
