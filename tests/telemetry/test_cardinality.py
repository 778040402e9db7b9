"""Whatever clients invent, the series stay those of the closed sets."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from mlx_pharos.engine.client import EngineState
from mlx_pharos.engine.engine_state import EngineSnapshot
from mlx_pharos.resilience.admission import Admission
from mlx_pharos.resilience.api_keys import ApiKey
from mlx_pharos.resilience.errors import QueueFullError
from mlx_pharos.server.app import create_app, start_telemetry
from mlx_pharos.server.options import ServerOptions
from mlx_pharos.telemetry.attributes import OTHER
from mlx_pharos.telemetry.catalog import BY_NAME
from mlx_pharos.telemetry.collector import make_window
from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.client import CHAT, COMPLETIONS, chat_body
from support.clock import SimulatedClock
from support.simulated import SimulatedRequests

if TYPE_CHECKING:
    import pytest
    from flask.testing import FlaskClient

INVENTED = 10_000


def test_10000_invented_requests_open_no_series() -> None:
    """10,000 different models, paths, methods, and values of headers: no label has one of them, and
    the series are no more than after the first thousand.
    """
    clock = SimulatedClock()
    logging.getLogger("mlx_pharos.requests").setLevel(logging.CRITICAL)
    try:
        with Telemetry(
            TelemetryOptions(model="tiny"), window=make_window(clock=clock)
        ) as telemetry:
            requests = SimulatedRequests(telemetry, clock)
            requests.run(1000)
            before = _series(telemetry)
            requests.run(INVENTED - 1000)
            after = _series(telemetry)
    finally:
        logging.getLogger("mlx_pharos.requests").setLevel(logging.NOTSET)
    assert before == after
    assert not any("invented" in label.lower() for _, labels in after for label in labels)
    assert len(after) < 200


class _FullEngine:
    """Is ready, and has no place for anybody."""

    state = EngineState.READY
    loaded = None
    pid = None
    retry_after = 1.0
    silent_seconds = 0.0
    reserve = Admission(max_batch=8, max_queue=0).reserve

    def snapshot(self) -> EngineSnapshot:
        """Nothing runs."""
        return EngineSnapshot()

    def submit_all(self, *_: object, **__: object) -> None:
        """Refuse."""
        message = "The queue is full."
        raise QueueFullError(message, retry_after=1.0)


def test_the_application_opens_no_series_for_what_clients_invent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same of the real routes, the gate and the errors: whatever they refuse, the series are those
    of the first round.
    """
    caplog.set_level(logging.CRITICAL, logger="mlx_pharos.requests")
    engine: Any = _FullEngine()
    options = ServerOptions(("tiny", "other"), api_keys=(ApiKey.of("one", "right"),))
    with start_telemetry(options) as telemetry:
        client = create_app(options, engine, telemetry).test_client()
        statuses = _invent(client, "invented0")
        before = _series(telemetry)
        assert [statuses] * 100 == [_invent(client, f"invented{n}") for n in range(1, 101)]
        after = _series(telemetry)
    assert {400, 401, 403, 404, 405, 415, 503} == set(statuses)
    assert before == after
    assert any(OTHER in labels for _, labels in after)
    assert not any("invented" in label.lower() for _, labels in after for label in labels)
    assert len(after) < 200


def _invent(client: FlaskClient, word: str) -> list[int]:
    """Put a word wherever a client can put one, and return the statuses of the answers."""
    key, host = {"Authorization": "Bearer right"}, f"{word}.example"
    headers = key | {
        "X-Request-Id": word,
        "User-Agent": word,
        "X-Forwarded-For": word,
        "Referer": f"https://{host}/{word}",
        "Traceparent": f"00-{word.encode().hex():0<32}-{word.encode().hex()[:16]}-01",
        "Tracestate": f"{word}={word}",
        "Baggage": f"{word}={word}",
        word: word,
    }
    preflight = {"Origin": f"https://{host}", "Access-Control-Request-Method": word}
    answers = [
        client.post(CHAT, json=chat_body(user=word, stop=word), headers=headers),
        client.post(CHAT, json=chat_body(model=word), headers=headers),
        client.post(CHAT, json=chat_body(**{word: word}), headers=headers),
        client.post(CHAT, json=chat_body(), headers={"Authorization": f"Bearer {word}"}),
        client.post(CHAT, json=chat_body(), headers=key | {"X-Request-Timeout": word}),
        client.post(COMPLETIONS, data=word, headers=key, content_type=f"application/{word}"),
        client.post(COMPLETIONS, json={"model": "other", "prompt": word}, headers=headers),
        client.open(f"/{word}", method=word.upper(), headers=headers),
        client.open(CHAT, method=word.upper(), headers=headers),
        client.get(f"/v1/{word}/{word}?{word}={word}", headers=headers),
        client.get(f"/v1/models/{word}", headers=headers),
        client.get(f"/v1/metrics?format={word}"),
        client.get("/livez", headers={"Host": host}),
        client.options(CHAT, headers=preflight),
    ]
    return [answer.status_code for answer in answers]


def _series(telemetry: Telemetry) -> set[tuple[str, tuple[str, ...]]]:
    """Return the series, but not the buckets of each."""
    text, _ = telemetry.prometheus.scrape()
    names = {each.prometheus_name for each in BY_NAME.values()}
    return {
        (sample.name, tuple(sorted(sample.labels.values())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.removesuffix("_count") in names
    }
