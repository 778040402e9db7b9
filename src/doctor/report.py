"""The doctor's report: a table for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from .. import __version__
from ..config import ConfigurationError, ConfigValidator, load_settings
from .checks import check_cache, check_machine, check_network, check_telemetry
from .finding import Finding
from .model import check_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from ..settings import Settings

__all__ = ["examine", "print_report"]

_MARKS = {"ok": "ok", "note": "note", "warning": "warn", "error": "FAIL"}


def examine(arguments: Sequence[str]) -> Iterator[Finding]:
    """Yield one finding after the other, for the settings that these flags make."""
    try:
        settings = load_settings(arguments)
    except ConfigurationError as error:
        for each in error.problems:
            text = f"{each.subject} {each.text}"
            mend = "correct it; `pharos serve --help` lists every setting"
            yield Finding(name="Settings", status="error", text=text, mend=mend)
        if error.usable is None:
            yield from check_machine("auto")
        else:
            yield from _examine_usable(error.usable, error.wrong_fields)
        return
    changed = len(settings.model_fields_set)
    text = f"valid, {changed} of them set" if changed else "valid, all at their defaults"
    yield Finding(name="Settings", text=text)
    yield from _examine_usable(settings, frozenset())


def _examine_usable(settings: Settings, wrong: frozenset[str]) -> Iterator[Finding]:
    """Yield what there is to say beside the settings that are wrong."""
    validator = ConfigValidator(settings)
    yield from check_machine(settings.blas)
    if not wrong & {"model", "cache_dir"}:
        yield check_model(settings, validator)
        yield check_cache(settings, validator)
    if "otlp_endpoint" not in wrong:
        yield from check_telemetry(settings, validator)
    if not wrong & {"host", "port"}:
        yield from check_network(settings, validator)


def print_report(arguments: Sequence[str], *, as_json: bool, output: TextIO) -> bool:
    """Write the report; return whether serving would work."""
    findings: list[Finding] = []
    for finding in examine(arguments):
        findings.append(finding)
        if not as_json:
            output.write(_line(finding))
            output.flush()
    can_serve = all(finding.status != "error" for finding in findings)
    if as_json:
        answer = {
            "version": __version__,
            "can_serve": can_serve,
            "findings": [asdict(finding) for finding in findings],
        }
        output.write(json.dumps(answer, indent=2) + "\n")
    else:
        output.write(_conclusion(findings, can_serve=can_serve))
    return can_serve


def _line(finding: Finding) -> str:
    line = f"{_MARKS[finding.status]:4}  {finding.name:10}  {finding.text}\n"
    return line + (f"{'':18}→ {finding.mend}\n" if finding.mend else "")


def _conclusion(findings: Sequence[Finding], *, can_serve: bool) -> str:
    if not can_serve:
        failing = [finding.name for finding in findings if finding.status == "error"]
        return f"\nServing would fail: {', '.join(dict.fromkeys(failing))}.\n"
    warnings = sum(finding.status == "warning" for finding in findings)
    fetched = any(
        finding.figures.get("present") is False and finding.figures.get("kind") != "gguf"
        for finding in findings
    )
    text = "Serving would work" + (", if the model can be fetched" if fetched else "")
    return f"\n{text}" + (f", with {warnings} to look at.\n" if warnings else ".\n")
