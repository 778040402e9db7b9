"""The real backends, each with the file of ``deploy/`` that configures it, on free ports."""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from .polling import fetch_json
from .program import Program, free_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DEPLOY",
    "Alertmanager",
    "Collector",
    "Jaeger",
    "Prometheus",
    "VictoriaLogs",
    "backend_program",
    "find_backend",
]

_ROOT = Path(__file__).parents[2]
DEPLOY = _ROOT / "deploy"
_PROGRAMS = _ROOT / ".backends" / "bin"
_REQUIRED = os.environ.get("REQUIRE_BACKENDS") == "1"


def find_backend(name: str) -> Path | None:
    """Return where a program is, None where it is not built."""
    path = _PROGRAMS / name
    return path if path.exists() else None


def backend_program(name: str) -> Path:
    """Return where a program is; skip the test where it is not built, or fail if it has to be."""
    path = find_backend(name)
    if path is None:
        text = f"{name} is not on this machine: `make backends` builds it"
        if _REQUIRED:
            pytest.fail(text)
        pytest.skip(text)
    return path


@dataclass(frozen=True, slots=True)
class Jaeger:
    """Where a Jaeger is reached."""

    program: Program
    otlp: str
    """Host and port of OTLP over gRPC."""
    url: str
    """Of its query API."""
    metrics: str
    """Host and port."""

    @classmethod
    def prepare(cls, folder: Path) -> Jaeger:
        """Describe one that keeps its traces in ``folder``."""
        otlp, http, grpc, health, metrics = free_ports(5)
        variables = {
            "JAEGER_DATA": str(folder),
            "JAEGER_OTLP_GRPC_ENDPOINT": f"127.0.0.1:{otlp}",
            "JAEGER_HTTP_ENDPOINT": f"127.0.0.1:{http}",
            "JAEGER_GRPC_ENDPOINT": f"127.0.0.1:{grpc}",
            "JAEGER_HEALTH_ENDPOINT": f"127.0.0.1:{health}",
            "JAEGER_METRICS_PORT": str(metrics),
        }
        program = Program(
            [backend_program("jaeger"), "--config", DEPLOY / "jaeger" / "config.yaml"],
            ready=f"http://127.0.0.1:{health}/status",
            folder=folder,
            variables=variables,
        )
        return cls(program, f"127.0.0.1:{otlp}", f"http://127.0.0.1:{http}", f"127.0.0.1:{metrics}")

    def spans(self, trace: str) -> list[dict[str, Any]]:
        """Return the spans of a trace, as OTLP's JSON has them.

        Raises:
            OSError: There is no such trace.
        """
        found = fetch_json(f"{self.url}/api/v3/traces/{trace}")
        return [
            span
            for resource in found["result"]["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


@dataclass(frozen=True, slots=True)
class VictoriaLogs:
    """Where a VictoriaLogs is reached, and what it knows."""

    program: Program
    address: str
    """Host and port."""

    @classmethod
    def prepare(cls, folder: Path) -> VictoriaLogs:
        """Describe one that keeps the log in ``folder``, with the flags that compose gives it."""
        address = f"127.0.0.1:{free_ports(1)[0]}"
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
        flags = dict(flag.split("=", 1) for flag in compose["services"]["victorialogs"]["command"])
        assert {"-storageDataPath", "-httpListenAddr"} <= flags.keys()
        flags |= {"-storageDataPath": "data", "-httpListenAddr": address}
        program = Program(
            [
                backend_program("victoria-logs"),
                *(f"{flag}={value}" for flag, value in flags.items()),
            ],
            ready=f"http://{address}/health",
            folder=folder,
        )
        return cls(program, address)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://{self.address}"

    def lines(self, query: str) -> list[dict[str, str]]:
        """Return the fields of each line of the log that a query of LogsQL finds."""
        question = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(
            f"{self.url}/select/logsql/query?{question}", timeout=10
        ) as answer:
            return [json.loads(line) for line in answer]


@dataclass(frozen=True, slots=True)
class Collector:
    """Where a collector is reached."""

    program: Program
    otlp: str
    """The base URL of OTLP over HTTP."""
    metrics: str
    """Host and port of its own metrics."""
    span_metrics: str
    """Host and port."""
    logs: Path

    @classmethod
    def prepare(
        cls,
        folder: Path,
        *overlays: str,
        jaeger: str,
        victorialogs: str,
        prometheus: str = "",
        **variables: str,
    ) -> Collector:
        """Describe one that keeps its queue and its logs in ``folder``.

        Args:
            folder: Survives the collector; another that is prepared with it goes on.
            overlays: Files of ``deploy/collector`` after ``config.yaml``.
            jaeger: Host and port of OTLP over gRPC.
            victorialogs: The base URL.
            prometheus: The base URL, for ``push.yaml``.
            variables: Further ones of its configuration.
        """
        grpc, http, health, metrics, spans = free_ports(5)
        files = [DEPLOY / "collector" / name for name in ("config.yaml", *overlays)]
        program = Program(
            [
                backend_program("otelcol-pharos"),
                *(part for file in files for part in ("--config", file)),
            ],
            ready=f"http://127.0.0.1:{health}/",
            folder=folder,
            variables={
                "COLLECTOR_DATA": str(folder),
                "COLLECTOR_OTLP_GRPC_ENDPOINT": f"127.0.0.1:{grpc}",
                "COLLECTOR_OTLP_HTTP_ENDPOINT": f"127.0.0.1:{http}",
                "COLLECTOR_HEALTH_ENDPOINT": f"127.0.0.1:{health}",
                "COLLECTOR_SPAN_METRICS_ENDPOINT": f"127.0.0.1:{spans}",
                "COLLECTOR_SPAN_METRICS_INTERVAL": "1s",
                "COLLECTOR_METRICS_PORT": str(metrics),
                "COLLECTOR_JAEGER_ENDPOINT": jaeger,
                "COLLECTOR_VICTORIALOGS_URL": victorialogs,
                "COLLECTOR_PROMETHEUS_URL": prometheus,
                **variables,
            },
        )
        return cls(
            program,
            f"http://127.0.0.1:{http}",
            f"127.0.0.1:{metrics}",
            f"127.0.0.1:{spans}",
            folder / "logs.jsonl",
        )


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """Where an Alertmanager is reached."""

    program: Program
    address: str
    """Host and port."""

    @classmethod
    def prepare(cls, folder: Path, *, webhook: str) -> Alertmanager:
        """Describe one that tells ``webhook`` within a second instead of half a minute."""
        (port,) = free_ports(1)
        folder.mkdir()
        text = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8")
        for shipped in ("group_wait: 30s", "group_wait: 10s", "group_interval: 5m"):
            assert shipped in text
            text = text.replace(shipped, shipped.split()[0] + " 1s")
        (folder / "alertmanager.yml").write_text(text, encoding="utf-8")
        (folder / "webhook-url").write_text(webhook, encoding="utf-8")
        program = Program(
            [
                backend_program("alertmanager"),
                "--config.file=alertmanager.yml",
                "--storage.path=data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            ready=f"http://127.0.0.1:{port}/-/ready",
            folder=folder,
        )
        return cls(program, f"127.0.0.1:{port}")


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Where a Prometheus is reached, and what it knows."""

    program: Program
    url: str

    @classmethod
    def prepare(
        cls,
        folder: Path,
        *,
        key: str,
        pharos: Sequence[str],
        pipeline: dict[str, str],
        alertmanager: str,
    ) -> Prometheus:
        """Describe one that scrapes and judges each second instead of each 15.

        Args:
            folder: Of its data and its copy of ``deploy/prometheus``.
            key: Of the servers' metrics.
            pharos: The servers' hosts and ports.
            pipeline: The other targets' hosts and ports, by their job.
            alertmanager: Host and port.
        """
        (port,) = free_ports(1)
        shutil.copytree(DEPLOY / "prometheus", folder)
        config = folder / "prometheus.yml"
        text = config.read_text(encoding="utf-8")
        assert text.count("_interval: 15s") == 2
        config.write_text(text.replace("_interval: 15s", "_interval: 1s"), encoding="utf-8")
        (folder / "pharos-metrics-key").write_text(key, encoding="utf-8")
        _write_targets(folder, "pharos", *(f'["{address}"]' for address in pharos))
        _write_targets(folder, "alertmanagers", f'["{alertmanager}"]')
        jobs = {**pipeline, "prometheus": f"127.0.0.1:{port}"}
        _write_targets(
            folder,
            "pipeline",
            *(f'["{address}"]\n  labels: {{ job: {job} }}' for job, address in jobs.items()),
        )
        program = Program(
            [
                backend_program("prometheus"),
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
                "--web.enable-otlp-receiver",
            ],
            ready=f"http://127.0.0.1:{port}/-/ready",
            folder=folder,
        )
        return cls(program, f"http://127.0.0.1:{port}")

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the series of an instant query: labels and value. Native histograms are absent."""
        found = fetch_json(f"{self.url}/api/v1/query", {"query": expression})
        return [
            (each["metric"], float(each["value"][1]))
            for each in found["data"]["result"]
            if "value" in each
        ]

    def value(self, expression: str) -> float:
        """Return the value of the only series of an instant query.

        Raises:
            ValueError: There is no series.
        """
        found = self.query(expression)
        if not found:
            raise ValueError(f"nothing for {expression}")
        assert len(found) == 1, found
        return found[0][1]

    def exemplars(self, expression: str, *, begin: float, end: float) -> list[dict[str, Any]]:
        """Return the exemplars of a selector between two times, in seconds since 1970."""
        found = fetch_json(
            f"{self.url}/api/v1/query_exemplars",
            {"query": expression, "start": str(begin), "end": str(end)},
        )
        return [each for series in found["data"] for each in series["exemplars"]]


def _write_targets(folder: Path, name: str, *groups: str) -> None:
    path = folder / "targets" / f"{name}.yml"
    assert path.exists()
    path.write_text("".join(f"- targets: {group}\n" for group in groups), encoding="utf-8")
