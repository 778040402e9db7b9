"""The official client, unchanged, against the running server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.client import RunningServer

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=15) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    """A chat answer has text, the reason of its end, and the engine's counts."""
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=12, temperature=0
    )

    assert "chat.completion" == answer.object
    assert "tiny" == answer.model
    [choice] = answer.choices
    assert ("length", "assistant") == (choice.finish_reason, choice.message.role)
    assert choice.message.content
    assert answer.usage
    assert 12 == answer.usage.completion_tokens
    assert answer.usage.prompt_tokens + 12 == answer.usage.total_tokens
    assert answer.usage.prompt_tokens_details


def test_greedy_answers_are_the_same_streamed_or_not(client: openai.OpenAI) -> None:
    """The deltas of a stream add up to the text of the plain answer."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "max_completion_tokens": 40,
        "temperature": 0,
    }
    plain = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True))

    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert plain.choices[0].message.content == streamed
    assert "assistant" == chunks[0].choices[0].delta.role
    assert "length" == chunks[-1].choices[0].finish_reason
    assert 1 == len({chunk.id for chunk in chunks})


def test_a_second_equal_request_finds_the_prompt_in_the_cache(client: openai.OpenAI) -> None:
    """Usage tells which tokens of the prompt were not computed again."""
    content = "The same long beginning, again and again. " * 20
    messages: list[Any] = [{"role": "user", "content": content}]
    for _ in range(2):
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)

    assert answer.usage
    assert answer.usage.prompt_tokens_details
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 400


def test_usage_of_a_stream_comes_last_and_only_when_asked(client: openai.OpenAI) -> None:
    """With include_usage the last chunk has the counts and no choices."""
    stream = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)

    assert [] == last.choices
    assert last.usage
    assert 6 == last.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_n_answers_are_separate_choices(client: openai.OpenAI) -> None:
    """Each choice has its own text; the prompt is counted once, the answers all."""
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, n=3, max_tokens=20, temperature=1, seed=5
    )

    assert [0, 1, 2] == [choice.index for choice in answer.choices]
    assert 3 == len({choice.message.content for choice in answer.choices})
    assert answer.usage
    assert 60 == answer.usage.completion_tokens


def test_n_answers_stream_side_by_side(client: openai.OpenAI) -> None:
    """Every choice announces its role, grows, and ends once."""
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, n=3, max_tokens=10, stream=True
    )
    roles, ends, texts = [], [], ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
            ends += [choice.index] if choice.finish_reason else []

    assert [0, 1, 2] == sorted(roles) == sorted(ends)
    assert all(texts)


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    """A seed makes a request at temperature 1 repeatable; another seed does not repeat it."""

    def text(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=30, temperature=1, seed=seed
        )
        return answer.choices[0].message.content

    assert text(7) == text(7)
    assert text(7) != text(8)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    """Each token comes with its log probability, its bytes, and as many others as asked for."""
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    [choice] = answer.choices
    assert choice.logprobs
    assert choice.logprobs.content
    tokens = choice.logprobs.content

    assert 8 == len(tokens)
    raw = b"".join(bytes(token.bytes or []) for token in tokens)
    assert raw.decode(errors="replace") == choice.message.content
    for token in tokens:
        assert token.logprob <= 0
        assert 3 == len(token.top_logprobs)
        assert token.top_logprobs[0].logprob == max(top.logprob for top in token.top_logprobs)
        assert token.token == token.top_logprobs[0].token


def test_streamed_logprobs_are_those_of_the_plain_answer(client: openai.OpenAI) -> None:
    """A stream carries the same tokens with the same numbers."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
    }
    plain = client.chat.completions.create(**fields).choices[0].logprobs
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**fields, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs else []

    assert plain
    assert plain.content
    assert [token.bytes for token in plain.content] == [token.bytes for token in streamed]
    assert [token.logprob for token in plain.content] == pytest.approx(
        [token.logprob for token in streamed], abs=1e-3
    )


def test_logprobs_are_those_of_the_content(client: openai.OpenAI) -> None:
    """A stop string that spans tokens takes theirs along, and none is streamed before its text."""
    fields: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0}
    fields |= {"max_tokens": 40, "logprobs": True}
    whole = client.chat.completions.create(**fields).choices[0].message.content
    assert whole
    fields["stop"] = whole[10:13]

    choice = client.chat.completions.create(**fields).choices[0]
    assert "stop" == choice.finish_reason
    assert choice.logprobs
    tokens = [token.token for token in choice.logprobs.content or []]
    assert choice.message.content == "".join(tokens)
    text = scored = ""
    for chunk in client.chat.completions.create(**fields, stream=True):
        delta, logprobs = chunk.choices[0].delta, chunk.choices[0].logprobs
        text += delta.content or ""
        scored += "".join(token.token for token in (logprobs and logprobs.content) or [])
        assert text == scored
    assert choice.message.content == text


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_strings_end_the_answer_and_are_not_part_of_it(
    client: openai.OpenAI, as_list: bool
) -> None:
    """``stop`` cuts before the string, also where it spans tokens, and says so."""
    fields: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0}
    whole = client.chat.completions.create(**fields, max_tokens=40).choices[0].message.content
    assert whole
    stop = whole[10:13]
    answer = client.chat.completions.create(
        **fields, max_tokens=40, stop=[stop, "never seen"] if as_list else stop
    )

    assert "stop" == answer.choices[0].finish_reason
    assert whole[: whole.index(stop)] == answer.choices[0].message.content


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    """Choices come in the order of the prompts, ``n`` for each; usage counts all prompts."""
    answer = client.completions.create(
        model="tiny", prompt=["ab", "abc"], n=2, max_tokens=5, temperature=0, echo=True
    )

    assert "text_completion" == answer.object
    assert [0, 1, 2, 3] == [choice.index for choice in answer.choices]
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert texts[0].startswith("ab")
    assert texts[2].startswith("abc")
    assert answer.usage
    assert 20 == answer.usage.completion_tokens


def test_completions_of_token_ids(client: openai.OpenAI) -> None:
    """Ids are taken as they are: the same text, told as ids, has the same answer."""
    fields: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0}
    text = client.completions.create(prompt="Hello", **fields)
    assert text.usage
    ids = list(b"Hello")
    assert len(ids) == text.usage.prompt_tokens

    assert text.choices[0].text == client.completions.create(prompt=ids, **fields).choices[0].text
    nested = client.completions.create(prompt=[ids, ids], **fields)
    assert [text.choices[0].text] * 2 == [choice.text for choice in nested.choices]


def test_completions_stream(client: openai.OpenAI) -> None:
    """Two prompts stream in one response, and add up to the plain texts."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "prompt": ["one", "two"],
        "max_tokens": 20,
        "temperature": 0,
    }
    plain = client.completions.create(**fields)
    texts = ["", ""]
    ends = []
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends += [choice.index] if choice.finish_reason else []

    assert [choice.text for choice in plain.choices] == texts
    assert [0, 1] == sorted(ends)


def test_completion_logprobs(client: openai.OpenAI) -> None:
    """Four lists of one length; offsets say where each token begins in the text."""
    answer = client.completions.create(
        model="tiny", prompt="Hello", max_tokens=10, temperature=0, logprobs=2
    )
    [choice] = answer.choices
    logprobs = choice.logprobs
    assert logprobs
    assert logprobs.tokens
    assert logprobs.text_offset

    assert 10 == len(logprobs.tokens) == len(logprobs.token_logprobs or [])
    assert 10 == len(logprobs.text_offset) == len(logprobs.top_logprobs or [])
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)


def test_completion_logprobs_have_the_token_itself(client: openai.OpenAI) -> None:
    """Also one that was drawn although others were likelier: it comes on top of what was asked for."""
    answer = client.completions.create(
        model="tiny", prompt="Hello", max_tokens=30, temperature=2, seed=3, logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs
    tops = logprobs.top_logprobs or []
    drawn = zip(logprobs.tokens or [], logprobs.token_logprobs or [], tops, strict=True)
    assert all(likeliest.get(token) == value for token, value, likeliest in drawn)
    assert {1, 2} == {len(likeliest) for likeliest in tops}


def test_models(client: openai.OpenAI) -> None:
    """Every served name is listed, and found by itself, slashes included."""
    assert ["tiny", "org/other"] == [model.id for model in client.models.list()]
    assert "org/other" == client.models.retrieve("org/other").id
    with pytest.raises(openai.NotFoundError, match="'nope' is not served"):
        client.models.retrieve("nope")


def test_any_served_name_may_be_asked_for(client: openai.OpenAI) -> None:
    """The second name is served too; the answer carries the first."""
    answer = client.chat.completions.create(model="org/other", messages=HELLO, max_tokens=1)

    assert "tiny" == answer.model


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    """It is a 404 that says what is served; nothing is loaded on request."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)

    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)
    assert "'tiny', 'org/other'" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_window_tells_both_numbers(
    client: openai.OpenAI, stream: bool
) -> None:
    """It is a 400 with the prompt's length and the window's, also when a stream was asked for."""
    messages: list[Any] = [{"role": "user", "content": "x" * 9000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages, stream=stream)

    assert ("context_length_exceeded", "messages") == (caught.value.code, caught.value.param)
    assert "8192" in caught.value.message
    assert "90" in caught.value.message


def test_the_engines_complaints_name_the_familys_field(client: openai.OpenAI) -> None:
    """What is wrong with a prompt is about ``prompt`` in a legacy completion."""
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="tiny", prompt="x" * 9000)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(model="tiny", prompt=[1, 2, 5000])

    assert "prompt" == too_long.value.param
    assert "vocabulary" in unknown.value.message


def test_more_answers_than_the_server_holds_are_refused_for_good(client: openai.OpenAI) -> None:
    """A request that can never fit is a 400, not a 503 to be retried for ever."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, n=100)

    assert "n" == caught.value.param
    assert "72 at once" in caught.value.message


def test_fields_that_are_not_offered_are_refused(client: openai.OpenAI) -> None:
    """The client's own exception says which field."""
    tool: Any = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, tools=[tool])

    assert ("unsupported_parameter", "tools") == (caught.value.code, caught.value.param)


def test_every_answer_has_a_request_id(client: openai.OpenAI) -> None:
    """The client finds it where it looks for OpenAI's; one it sends comes back."""
    response = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, max_tokens=1, extra_headers={"X-Request-Id": "mine-7"}
    )

    assert "mine-7" == response.request_id
