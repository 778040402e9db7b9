"""The settings of the model: which one, under which names, from where."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, field_validator
from pydantic_settings import NoDecode

from .field import default_cache_dir, expand_home, setting, split_names

__all__ = ["STARTER", "ModelSettings"]

STARTER = "starter"
"""The name of the small model that can be served without choosing one."""

_LONGEST_NAME = 256
"""Characters of a served model name at most: it is a label of metrics and part of paths."""


class ModelSettings(BaseModel):
    """The group "Model"."""

    model: str = setting(
        STARTER,
        "The model: starter, a local MLX directory, a .gguf file of the llama family, "
        "or the id of a repository on the Hugging Face Hub.",
        group="Model",
        reason="A real chat model of 135 million parameters that every machine can run.",
        metavar="M",
        min_length=1,
    )
    served_model_name: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = setting(
        (),
        "The names that requests may use for the model, separated by commas; "
        "the first is the one in answers. Empty: derived from the model.",
        group="Model",
        reason="The last part of a path, or the id of a repository, is what people expect to type.",
        metavar="NAME[,NAME]",
    )
    context_length: int = setting(
        0,
        "Tokens of prompt and answer together at most. 0: what the model was made for.",
        group="Model",
        reason="The model's own limit is where its answers stay good; "
        "lower it to bound memory per request.",
        metavar="TOKENS",
        ge=0,
        le=2**24,
    )
    trust_remote_code: bool = setting(
        False,
        "Run Python code that comes with the model.",
        group="Model",
        reason="A model is data; code in it would run with your rights.",
    )
    ignore_model_code: bool = setting(
        False,
        "Serve a model that comes with Python code, without running the code.",
        group="Model",
        reason="Many models carry code that mlx-lm does not need; you should know that it is there.",
    )
    cache_dir: Path = setting(
        default_cache_dir(),
        "Where fetched and converted models are kept.",
        group="Model",
        reason="Models can be fetched again, so they belong to the user's cache.",
        metavar="DIR",
    )

    _expand_cache_dir = field_validator("cache_dir")(expand_home)

    @field_validator("served_model_name")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name or len(name) > _LONGEST_NAME or not name.isprintable() or " " in name:
                raise ValueError(
                    f"should be names of 1 to {_LONGEST_NAME} printable characters without spaces"
                )
        if len(set(value)) < len(value):
            raise ValueError("should name each name once")
        return value
