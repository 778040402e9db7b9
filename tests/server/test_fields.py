"""Request fields: what is taken, and what a refusal names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlx_pharos.engine.protocol import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt
from mlx_pharos.resilience.errors import InvalidRequestError, UnsupportedFieldError
from mlx_pharos.server.families import ChatFamily, CompletionFamily
from mlx_pharos.server.options import RequestDefaults

if TYPE_CHECKING:
    from mlx_pharos.server.call import GenerationCall

USER = {"role": "user", "content": "Hello"}


def chat(**fields: Any) -> GenerationCall:
    """Read a chat request."""
    return ChatFamily().read({"model": "m", "messages": [USER]} | fields, RequestDefaults())


def complete(**fields: Any) -> GenerationCall:
    """Read a legacy completion request."""
    return CompletionFamily().read({"model": "m", "prompt": "Hello"} | fields, RequestDefaults())


WRONG = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        "messages[0].content[0].text",
    ),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    ({"temperature": True}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": False}, "n"),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 7}, "stop"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {"7": 101}}, "logit_bias.7"),
    ({"logit_bias": {"x y": 1}}, "logit_bias.'x y'"),
    ({"logit_bias": {"7": "1"}}, "logit_bias.7"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"user": 7}, "user"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a"),
]

UNSUPPORTED = [
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"best_of": 2}, "best_of"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"messages": [{**USER, "colour": "red"}]}, "messages[0].colour"),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "messages[0].tool_calls",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_value_is_named(fields: dict[str, Any], param: str) -> None:
    """A wrong type, shape or range is an error that names the field in dotted form."""
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)

    assert param == caught.value.param
    assert "invalid_value" == caught.value.code
    assert param in caught.value.message


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED, ids=lambda value: str(value)[:60])
def test_what_is_not_offered_is_named_and_never_ignored(fields: dict[str, Any], param: str) -> None:
    """A field that would change the answer elsewhere is refused here, by name."""
    with pytest.raises(UnsupportedFieldError) as caught:
        chat(**fields)

    assert param == caught.value.param
    assert "unsupported_parameter" == caught.value.code


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[1], [-1]]}, "prompt[1][0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": [USER]}, "messages"),
    ],
)
def test_legacy_completions_name_what_is_wrong_too(fields: dict[str, Any], param: str) -> None:
    """The second family refuses as the first does."""
    with pytest.raises(InvalidRequestError) as caught:
        complete(**fields)

    assert param == caught.value.param


def test_defaults_are_openais() -> None:
    """A request that says nothing is sampled at temperature 1, and a completion has 16 tokens."""
    call = complete()

    assert (1.0, 1.0, 0) == (call.sampling.temperature, call.sampling.top_p, call.sampling.top_k)
    assert (16, 0) == (call.max_tokens, chat().max_tokens)
    assert (1, (), False) == (call.n, call.stop, call.stream)


def test_null_means_left_out() -> None:
    """Clients that send null for every field they do not use are served."""
    names = ["n", "stop", "tools", "temperature", "logit_bias", "stream", "audio"]
    call = chat(**dict.fromkeys(names), seed=1)

    assert chat(seed=1) == call


def test_values_that_change_nothing_are_accepted() -> None:
    """Clients that send their defaults are served."""
    call = chat(
        seed=1,
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        store=False,
        service_tier="auto",
        user="me",
        metadata={"a": "b"},
    )

    assert chat(seed=1) == call


def test_an_earlier_answer_can_be_sent_back_as_it_came() -> None:
    """The assistant message of an OpenAI client, dumped whole, is a valid message."""
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    call = chat(messages=[USER, answer, USER])

    assert (
        ChatPrompt(
            (
                ChatMessage("user", "Hello"),
                ChatMessage("assistant", "Hi"),
                ChatMessage("user", "Hello"),
            )
        )
        == call.prompts[0]
    )


def test_text_parts_are_joined_and_developer_is_system() -> None:
    """Both spellings of the same conversation reach the engine as one."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = chat(messages=[{"role": "developer", "content": parts, "name": "x"}])

    assert (ChatPrompt((ChatMessage("system", "ab", "x"),)),) == call.prompts


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", (TextPrompt("a"),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2], (TokenPrompt((1, 2)),)),
        ([[1], [2, 3]], (TokenPrompt((1,)), TokenPrompt((2, 3)))),
    ],
)
def test_prompts_come_in_four_forms(prompt: Any, prompts: tuple[Any, ...]) -> None:
    """Text, texts, token ids, and lists of token ids."""
    assert prompts == complete(prompt=prompt).prompts


def test_sampling_fields_reach_the_engine() -> None:
    """Every sampling field has an effect on what the engine is told."""
    call = chat(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={"7": -100, "0": 1.5},
        seed=-1,
        stop="x",
        max_completion_tokens=9,
        logprobs=True,
        top_logprobs=3,
        n=2,
    )

    sampling = call.sampling
    assert (0.5, 0.9, 5, 0.1) == (
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
    )
    assert (1.1, 0.2, 0.3) == (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
    )
    assert (((7, -100.0), (0, 1.5)), 2**64 - 1) == (sampling.logit_bias, sampling.seed)
    assert (("x",), 9, True, 3, 2) == (
        call.stop,
        call.max_tokens,
        call.logprobs,
        call.top_logprobs,
        call.n,
    )


def test_requests_without_a_seed_draw_their_own() -> None:
    """Two equal requests are not given the same randomness."""
    assert chat().sampling.seed != chat().sampling.seed


def test_a_top_p_of_zero_is_greedy() -> None:
    """The smallest set of tokens is one token; it does not switch the filter off."""
    assert 0.0 == chat(top_p=0, temperature=1).sampling.temperature
