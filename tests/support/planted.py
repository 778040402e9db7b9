"""A served process full of secrets, of which nothing may be heard: not in spans and metrics either."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from support.collector import collector
from support.patient import patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.collector import Collector
    from support.patient import Patient

__all__ = ["planted"]


@contextlib.contextmanager
def planted(model: Path, *flags: str) -> Iterator[Patient]:
    """Serve a model out of a directory whose name is a secret, among variables that hold some.

    A collector takes the telemetry, unless the flags name one; when all is over, what it
    received and the whole log are searched.

    Args:
        model: A directory, which is copied.
        flags: Of ``pharos serve``.
    """
    mark = "planted" + os.urandom(6).hex()
    variables = {
        "HF_TOKEN": f"hf_{mark}token",
        "HF_ENDPOINT": f"http://user:{mark}password@127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={mark}header",
        "OTEL_LOGS_EXPORTER": "otlp",
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{mark}folder")))
        variables["PHAROS_CACHE_DIR"] = str(folder / "cache")
        if "--otlp-endpoint" in flags:
            target = None
        else:
            target = stack.enter_context(collector())
            flags = (*flags, "--otlp-endpoint", target.endpoint)
        shutil.copytree(model, folder / "model")
        with patient(folder / "model", *flags, variables=variables) as server:
            server.secrets.append(mark)
            yield server
        _search(server, target)


def _search(server: Patient, target: Collector | None) -> None:
    """Look through all that is left of a server that has ended."""
    places = {"log": "".join(server.log)}
    if target is not None:
        for signal in ("traces", "metrics", "logs"):
            places[signal] = "".join(map(str, target.requests(signal)))
    for place, text in places.items():
        for secret in server.secrets:
            assert secret not in text, f"a secret is in the {place}"
    if target is not None and not server.was_killed:
        assert target.spans(), "no span came, so none was judged"
