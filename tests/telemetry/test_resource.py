"""What a server says that it is: in the resource of OTLP, and in ``target_info``."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from mlx_pharos.telemetry.telemetry import Telemetry, TelemetryOptions
from support.collector import attributes_of, collector

SDK = {
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": version("opentelemetry-sdk"),
}


def _target_info(telemetry: Telemetry) -> str:
    (line,) = re.findall(r"^target_info\{.*$", telemetry.prometheus.scrape()[0], re.MULTILINE)
    return str(line)


def test_the_sdk_is_named() -> None:
    """With its language and version, as the specification wants it of every resource."""
    with collector() as target:
        with Telemetry(TelemetryOptions(model="tiny", otlp_endpoint=target.endpoint)) as telemetry:
            telemetry.tracer.start_span("x").end()
            line = _target_info(telemetry)
        for signal in ("traces", "metrics"):
            (request, *_) = target.requests(signal)
            (group,) = getattr(request, f"resource_{'spans' if signal == 'traces' else signal}")
            assert SDK.items() <= attributes_of(group.resource).items()
    assert all(f'{name.replace(".", "_")}="{value}"' in line for name, value in SDK.items())


@pytest.mark.parametrize(
    ("machine", "named"),
    [("x86_64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64"), ("s390x", "s390x")],
)
def test_the_machine_has_its_name_of_the_conventions(
    machine: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not the operating system's own."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    with Telemetry(TelemetryOptions(model="tiny")) as telemetry:
        assert named == telemetry.resource.attributes["host.arch"]
        assert f'host_arch="{named}"' in _target_info(telemetry)
