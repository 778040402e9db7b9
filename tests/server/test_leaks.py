"""Faults that quote secrets: none of them is in a log line, a metric, a span or another's answer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.collector import Collector, collector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FOLDER = "Zq1folder"
_CACHE = "Zq2cache"
_KEY = "sk-Zq3serverkey0123456789abcdef"
_METRICS_KEY = "Zq4metricskey0123456789abcdef"
_TOKEN = "hf_Zq5hubtoken0123456789"
_PROMPT = "Zq6prompt"
_WRONG_KEY = "sk-Zq7wrongkey0123456789"
_PATH = "Zq8path"
_MODEL = "Zq9model"
_OPERATORS = (_FOLDER, _CACHE, _KEY, _METRICS_KEY, _TOKEN)
"""What no answer may hold."""
_PLANTED = (*_OPERATORS, _PROMPT, _WRONG_KEY, _PATH, _MODEL)
"""What no log line, metric or span may hold; a client's answer may quote the client."""


class _Running:
    """``pharos serve`` with secrets in its settings, its environment and its paths."""

    def __init__(self, model: Path, cache: Path, endpoint: str) -> None:
        settings = {
            "PHAROS_API_KEY": _KEY,
            "PHAROS_METRICS_API_KEY": _METRICS_KEY,
            "PHAROS_CACHE_DIR": str(cache),
            "PHAROS_LOG_FORMAT": "json",
            "HF_TOKEN": _TOKEN,
            "OTEL_LOGS_EXPORTER": "otlp",
        }
        command = [sys.executable, "-m", "mlx_pharos", "serve", "--model", str(model)]
        command += ["--port", "0", "--served-model-name", "tiny", "--otlp-endpoint", endpoint]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **settings}
        )
        self.lines: list[str] = []
        self.answers: list[str] = []
        self.address = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(15), self.lines

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "is ready" in line:
                self.address = line.partition("http://")[2].partition("/v1")[0]
                self._ready.set()

    def send(self, path: str, body: bytes | None = None, *, key: str = _KEY) -> tuple[int, str]:
        """Send a request and keep what came back, headers included."""
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            data=body,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                status, text = answer.status, f"{answer.headers}{answer.read().decode()}"
        except urllib.error.HTTPError as error:
            status, text = error.code, f"{error.headers}{error.read().decode()}"
        self.answers.append(text)
        return status, text

    def chat(self, content: str, **fields: Any) -> tuple[int, str]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        return self.send("/v1/chat/completions", json.dumps(body | fields).encode())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(15)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def target() -> Iterator[Collector]:
    """A collector."""
    with collector() as made:
        yield made


def test_nothing_planted_is_told(tiny_model: Path, tmp_path: Path, target: Collector) -> None:
    """Bad bodies, wrong keys, unknown paths and models, prompts that fail, an engine that is
    killed: answers hold nothing of the operator's, and logs, metrics and spans nothing of anybody's.
    """
    model = tmp_path / _FOLDER
    shutil.copytree(tiny_model, model)
    server = _Running(model, tmp_path / _CACHE, target.endpoint)
    try:
        assert 200 == server.chat(_PROMPT, max_tokens=4)[0]
        assert 401 == server.send("/v1/models", key=_WRONG_KEY)[0]
        assert 404 == server.send(f"/home/{_PATH}/.ssh")[0]
        assert 404 == server.chat(_PROMPT, model=f"/srv/{_MODEL}")[0]
        assert 400 == server.chat(_PROMPT, temperature=_PROMPT)[0]
        assert 400 == server.send("/v1/chat/completions", f'{{"{_PROMPT}'.encode())[0]
        assert 400 == server.send("/v1/chat/completions", b"\xff" + _PROMPT.encode())[0]
        assert 400 == server.chat(_PROMPT * 40_000)[0]
        assert 400 == server.chat(_PROMPT, logit_bias={"999999": 1})[0]
        (engine,) = psutil.Process(server.process.pid).children()
        engine.kill()
        deadline = time.monotonic() + 15
        while server.send("/readyz")[0] != 200 or server.chat(_PROMPT, max_tokens=2)[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        scraped = [
            server.send(path, key=_METRICS_KEY)[1]
            for path in ("/metrics", "/v1/metrics", "/health", "/openapi.json")
        ]
    finally:
        server.stop()
    told = {
        "log": "".join(server.lines),
        "metrics": "".join(scraped) + str(list(target.metrics().values())),
        "spans": "".join(map(str, target.spans())),
        "logs": "".join(map(str, target.logs())),
        "requests": "".join(
            str(message)
            for signal_ in ("traces", "metrics", "logs")
            for message in target.requests(signal_)
        ),
    }
    assert {name: [] for name in told} == {
        name: [plant for plant in _PLANTED if plant in text] for name, text in told.items()
    }
    assert [] == [plant for plant in _OPERATORS if plant in "".join(server.answers)]
    assert "SIGKILL" in told["log"]
    assert told["spans"]
    assert told["logs"]
