"""``promtool check metrics``: what Prometheus' own tool has against an exposition."""

from __future__ import annotations

import re
import subprocess

from .backend import backend_program

__all__ = ["VLLM_COLONS", "promtool_findings"]

VLLM_COLONS = re.compile(r"vllm:\w+ metric names should not contain ':'")
"""The one thing to say against vLLM's own names, which are not ours to choose."""


def promtool_findings(text: str) -> list[str]:
    """Return the findings, one a line; the test is skipped where the tool is missing.

    Text that it cannot read is a finding too.
    """
    result = subprocess.run(
        [backend_program("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    findings = (result.stdout + result.stderr).splitlines()
    assert bool(findings) == (result.returncode != 0)
    return findings
