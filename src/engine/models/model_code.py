"""Whether Python code comes with a model, and what then happens.

A model is data, and a library that loads it runs code beside it only where it is told to. That is
refused before any library sees the directory, so that no default of a later version decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ...resilience.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["CodePolicy", "check_code", "code_policy"]

CodePolicy = Literal["refuse", "ignore", "run"]
"""``ignore`` serves a model that has code beside it, as far as it goes without running it."""

_MOST_SHOWN = 3


def code_policy(*, trust: bool, ignore: bool) -> CodePolicy:
    """Return what the two settings together mean: trust wins."""
    if trust:
        return "run"
    return "ignore" if ignore else "refuse"


def check_code(
    directory: Path,
    scripts: Sequence[str],
    files: Mapping[str, dict[str, Any]],
    policy: CodePolicy,
) -> None:
    """Raise for a model that comes with code, unless the operator has said what is to become of it.

    Args:
        directory: The model's.
        scripts: The Python files in it.
        files: The content of its JSON files, by name.
        policy: What the operator said.

    Raises:
        ModelError: There is code; the message names it.
    """
    if policy == "run":
        return
    needed = _needed(files)
    if needed:
        raise ModelError(
            f"{directory.name} needs {needed}, and that code runs with all rights of the server. "
            "Set trust_remote_code if you have read it and trust it."
        )
    found = [*scripts, *(f"auto_map in {name}" for name in files if _names_code(files[name]))]
    if found and policy == "refuse":
        shown = ", ".join(found[:_MOST_SHOWN]) + (", …" if len(found) > _MOST_SHOWN else "")
        raise ModelError(
            f"{directory.name} comes with Python code ({shown}), which is not run. Set "
            "ignore_model_code to serve it without its code, or trust_remote_code if you have "
            "read the code and trust it."
        )


def _needed(files: Mapping[str, dict[str, Any]]) -> str:
    """Return the code without which the model cannot be built; empty where there is none."""
    own = files.get("config.json", {}).get("model_file")
    if own is not None:
        return f"code of its own ({own}) to build the model"
    classes = files.get("tokenizer_config.json", {}).get("auto_map")
    if isinstance(classes, dict) and "AutoTokenizer" in classes:
        return "code of its own for the tokenizer"
    return ""


def _names_code(content: dict[str, Any]) -> bool:
    """Return whether a file names classes of its own, itself or in one of its parts."""
    parts = [content, *(each for each in content.values() if isinstance(each, dict))]
    return any(each.get("auto_map") for each in parts)
