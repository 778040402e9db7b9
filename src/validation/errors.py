"""The errors of a configuration that this machine cannot fulfil, one problem in each."""

from __future__ import annotations

from ..sources import ConfigurationError, Problem

__all__ = ["DependencyError", "ValidationError"]


class ValidationError(ConfigurationError):
    """A value, a path or an address cannot be used."""

    def __init__(self, subject: str, text: str) -> None:
        super().__init__([Problem(subject=subject, text=text)])


class DependencyError(ConfigurationError):
    """A package that serving needs is missing or of another version, or two exclude each other."""

    def __init__(self, subject: str, text: str) -> None:
        super().__init__([Problem(subject=subject, text=text)])
