"""The settings of restarts: what happens when the engine dies or hangs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from .field import setting

__all__ = ["RestartSettings"]


class RestartSettings(BaseModel):
    """The group "Restarts"."""

    restart_limit: int = setting(
        3,
        "How often a dead engine is started again within the window; after one death more, none "
        "is. 0: never.",
        group="Restarts",
        reason="A model that kills every engine would be loaded for ever.",
        metavar="N",
        ge=0,
        le=1000,
    )
    restart_window: float = setting(
        60.0,
        "Seconds after which a death of the engine counts no more.",
        group="Restarts",
        reason="What dies once an hour is worth a restart each time.",
        metavar="SECONDS",
        gt=0,
        le=86400,
    )
    crash_budget: int = setting(
        2,
        "Deaths of engines that a request may be in and still be resumed. 0: none is.",
        group="Restarts",
        reason="One death is bad luck; a request that was in three is the likely cause.",
        metavar="N",
        ge=0,
        le=100,
    )
    hang_timeout: float = setting(
        120.0,
        "Seconds that an engine with work may be silent; then it is killed and started again. Each "
        "step and each piece of a prompt breaks the silence.",
        group="Restarts",
        reason="It must be longer than the slowest piece: a minute for large models on slow "
        "machines, where a smaller prefill_step helps.",
        metavar="SECONDS",
        ge=1,
        le=86400,
    )
    load_timeout: float = setting(
        3600.0,
        "Seconds that loading the model may take; then the engine is killed. An engine that is "
        "started again may take ten times as long as the longest load, at least hang_timeout and "
        "30, and twice as long after each load that took longer; never more than this.",
        group="Restarts",
        reason="Hundreds of gigabytes come from a network's disk in half an hour. Who waits for an "
        "engine that is started again waits for a load whose time is known.",
        metavar="SECONDS",
        ge=1,
        le=86400,
    )
    without_engine: Literal["exit", "stay"] = setting(
        "exit",
        "What the server does when no engine is started any more. exit: end with code 1. stay: "
        "answer that it is not ready.",
        group="Restarts",
        reason="A service manager or an orchestrator can only help a server that says so.",
    )
