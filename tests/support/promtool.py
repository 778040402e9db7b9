"""``promtool check metrics``: what Prometheus' own tool has against an exposition."""

from __future__ import annotations

import re
import shutil
import subprocess

from .backend import backend_program, find_backend

__all__ = ["VLLM_COLONS", "promtool_findings"]

VLLM_COLONS = re.compile(r"vllm:\w+ metric names should not contain ':'")
"""The one thing to say against vLLM's own names, which are not ours to choose."""


def promtool_findings(text: str) -> list[str]:
    """Return the findings, one a line; the test is skipped where the tool is missing.

    Text that it cannot read is a finding too. The tool is the one that was built, or the system's.
    """
    built = find_backend("promtool")
    program = built or shutil.which("promtool") or backend_program("promtool")
    result = subprocess.run(
        [program, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    findings = (result.stdout + result.stderr).splitlines()
    assert bool(findings) == (result.returncode != 0)
    return findings
