"""The engine process through its client: what is generated, and for whom."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.engine.protocol import (
    Accepted,
    ChatMessage,
    ChatPrompt,
    Delta,
    PrefillProgress,
    Sampling,
    TextPrompt,
    TokenPrompt,
)
from mlx_pharos.resilience.errors import ContextLengthError, InvalidRequestError, QueueFullError
from support.engine import GREEDY, collect, generate, wait_until_idle

if TYPE_CHECKING:
    from mlx_pharos.engine.client import EngineClient

_CHAT = ChatPrompt((ChatMessage("user", "Hello there"),))
_LONG = 1_000_000


def test_every_token_is_told_and_counted(engine: EngineClient) -> None:
    """Ids travel with the text, and the finish agrees with them."""
    answer = generate(engine, _CHAT, max_tokens=24)
    finish = answer.finishes[0]
    assert ("length", 24, 24) == (finish.reason, finish.completion_tokens, len(answer.tokens()))
    assert answer.accepted.prompt_tokens == finish.prompt_tokens
    assert answer.text()


def test_times_are_in_the_order_of_life(engine: EngineClient) -> None:
    """Queue, prefill and decode can be told apart from the engine's own clock."""
    finish = generate(engine, "time", max_tokens=4).finishes[0]
    times = [finish.accepted_at, finish.prefill_at, finish.first_token_at, finish.finished_at]
    assert sorted(times) == times
    assert finish.accepted_at > 0


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, top_p=0.95, seed=5)])
def test_company_does_not_change_the_text(engine: EngineClient, sampling: Sampling) -> None:
    """Alone or in a batch that others join and leave, a request gets the same tokens."""
    prompts = [f"company {index} " + "x" * (7 * index) for index in range(4)]
    alone = [generate(engine, prompt, sampling, max_tokens=40).tokens() for prompt in prompts]
    together: list[list[int]] = [[]] * len(prompts)

    def run(index: int) -> None:
        together[index] = generate(
            engine, prompts[index], sampling, max_tokens=40 - 5 * index
        ).tokens()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tokens[: 40 - 5 * index] for index, tokens in enumerate(alone)] == together


def test_choices_share_the_prompt_and_differ(engine: EngineClient) -> None:
    """The prompt of n choices is computed once; each choice has its own draws."""
    prompt = "three choices from one prompt, computed once"
    answer = generate(engine, prompt, Sampling(temperature=1.0, seed=3), n=3, max_tokens=30)
    assert 3 == len({answer.text(choice) for choice in range(3)})
    total = answer.accepted.prompt_tokens
    assert [0, total - 1, total - 1] == [answer.finishes[c].cached_tokens for c in range(3)]
    assert [total - 1] == [event.processed for event in answer.progress]


def test_prompt_cache_shortens_the_second_prefill(engine: EngineClient) -> None:
    """A prompt that begins as an earlier one reports its cached tokens, and the same answer."""
    text = "a prompt that is asked twice " * 20
    first = generate(engine, text + "first", max_tokens=8)
    again = generate(engine, text + "first", max_tokens=8)
    other = generate(engine, text + "second", max_tokens=8)
    length = first.accepted.prompt_tokens
    assert [0, length - 1] == [first.finishes[0].cached_tokens, again.finishes[0].cached_tokens]
    assert len(text) <= other.finishes[0].cached_tokens < length
    assert first.tokens() == again.tokens()


def test_stop_string_ends_the_text_before_it(engine: EngineClient) -> None:
    """Also where the string begins and ends inside of tokens; nothing of it is sent."""
    whole = generate(engine, "stop", max_tokens=60).text()
    stop = whole[20:24]
    answer = generate(engine, "stop", max_tokens=60, stop=("never seen", stop))
    assert whole[: whole.index(stop)] == answer.text()
    assert "stop" == answer.finishes[0].reason
    assert answer.finishes[0].completion_tokens < 60


def test_text_that_began_a_stop_string_comes_at_the_end(engine: EngineClient) -> None:
    """A held back beginning is set free when the answer ends without the string."""
    whole = generate(engine, "held", max_tokens=30).text()
    assert whole == generate(engine, "held", max_tokens=30, stop=(whole[-3:] + "???",)).text()


def test_logprobs_are_those_of_the_chosen_tokens(engine: EngineClient) -> None:
    """Greedy choices are the most likely, and alternatives come in order."""
    answer = generate(engine, "logprobs", max_tokens=6, top_logprobs=3)
    entries = [entry for delta in answer.deltas for entry in delta.logprobs]
    assert answer.tokens() == [entry.token for entry in entries]
    for entry in entries:
        values = [alternative.logprob for alternative in entry.top]
        assert sorted(values, reverse=True) == values
        assert (entry.token, entry.logprob) == (entry.top[0].token, entry.top[0].logprob)
        assert entry.logprob <= 0


def test_logit_bias_reaches_the_model(engine: EngineClient) -> None:
    """A token with a bias of 100 is the only one that is drawn."""
    sampling = Sampling(temperature=1.0, logit_bias=((65, 100.0),), seed=1)
    assert [65] * 5 == generate(engine, "bias", sampling, max_tokens=5).tokens()


def test_penalties_apply_in_a_running_batch(engine: EngineClient) -> None:
    """A strong presence penalty lets no token come twice."""
    sampling = Sampling(temperature=0.0, presence_penalty=100.0)
    tokens = generate(engine, "aaaa", sampling, max_tokens=40).tokens()
    assert len(set(tokens)) == len(tokens)


def test_prompt_over_the_context_window_is_refused_with_both_numbers(engine: EngineClient) -> None:
    """Before anything runs."""
    assert engine.loaded is not None
    window = engine.loaded.context_length
    with pytest.raises(ContextLengthError) as caught:
        generate(engine, TokenPrompt((1,) * window))
    assert (window, window) == (caught.value.prompt_tokens, caught.value.context_length)
    wait_until_idle(engine)


def test_answer_ends_at_the_context_window(engine: EngineClient) -> None:
    """Room for three tokens gives three tokens, whatever was asked."""
    assert engine.loaded is not None
    prompt = TokenPrompt((65,) * (engine.loaded.context_length - 3))
    finish = generate(engine, prompt, max_tokens=_LONG).finishes[0]
    assert ("length", 3) == (finish.reason, finish.completion_tokens)


@pytest.mark.parametrize("prompt", [TokenPrompt((1, _LONG)), TokenPrompt(()), TextPrompt("")])
def test_prompt_that_no_model_can_take_is_refused(
    engine: EngineClient, prompt: TokenPrompt | TextPrompt
) -> None:
    """Unknown ids and empty prompts are the client's fault and cost no place."""
    with pytest.raises(InvalidRequestError):
        generate(engine, prompt)
    wait_until_idle(engine)


def test_steps_alternate_between_decode_and_prefill(engine: EngineClient) -> None:
    """Seen from the pipe: every step of a long prefill also brought the stream's token."""
    steps: list[tuple[bool, bool]] = []
    observed = engine.take

    def observe(message: object) -> None:
        events = getattr(message, "events", ())
        kinds = {type(event) for event in events}
        steps.append((PrefillProgress in kinds, Delta in kinds))
        observed(message)  # type: ignore[arg-type]

    with engine.submit(TextPrompt("stream"), GREEDY, max_tokens=4000) as running:
        collect(running, until=1)
        engine.take = observe  # type: ignore[method-assign]
        try:
            with engine.submit(TextPrompt("q" * 4000), GREEDY, max_tokens=1) as long:
                collect(long)
        finally:
            engine.take = observed  # type: ignore[method-assign]
    chunks = [decoded for prefilled, decoded in steps if prefilled]
    assert len(chunks) >= 15
    assert all(chunks)
    wait_until_idle(engine)


def test_tokenizing_a_long_prompt_does_not_stall_decoding(engine: EngineClient) -> None:
    """While megabytes are tokenized (and then refused), a running stream gets its tokens."""
    with engine.submit(TextPrompt("stream"), GREEDY, max_tokens=8000) as running:
        collect(running, until=1)
        with engine.submit(TextPrompt("word 123 " * 400_000), GREEDY, max_tokens=1) as huge:
            tokens = 0
            while True:
                try:
                    if huge.receive(0.0):
                        pytest.fail("the prompt is longer than the context window")
                except ContextLengthError:
                    break
                tokens += len(collect(running, until=1).deltas)
    assert tokens > 20
    wait_until_idle(engine)


def test_cancel_frees_places_in_queue_prefill_and_decode(engine: EngineClient) -> None:
    """Whatever a request does when its client leaves, its place is free right after."""
    decoding = [
        engine.submit(TextPrompt(f"decode {index}"), GREEDY, max_tokens=_LONG) for index in range(3)
    ]
    for generation in decoding:
        collect(generation, until=1)
    prefilling = engine.submit(TextPrompt("r" * 8000), GREEDY, max_tokens=5)
    while not any(isinstance(event, PrefillProgress) for event in prefilling.receive(5)):
        pass
    queued = engine.submit(TextPrompt("queued"), GREEDY, max_tokens=5)
    assert any(isinstance(event, Accepted) for event in queued.receive(5))
    assert 5 == engine.in_flight
    for generation in (queued, prefilling, *decoding):
        generation.close()
    wait_until_idle(engine)
    snapshot = engine.snapshot()
    assert (0, 0) == (snapshot.running, snapshot.waiting)


def test_queue_overflow_is_refused_at_once(engine: EngineClient) -> None:
    """Four run, four wait, the ninth is told to come back; afterwards there is room again."""
    held = [
        engine.submit(TextPrompt(f"held {index}"), GREEDY, max_tokens=_LONG) for index in range(8)
    ]
    with pytest.raises(QueueFullError) as caught:
        engine.submit(TextPrompt("ninth"), GREEDY)
    assert caught.value.retry_after
    for generation in held:
        generation.close()
    wait_until_idle(engine)
    assert generate(engine, "room again", max_tokens=2).finishes


@pytest.mark.parametrize("token", [260, 5000, 999_999_999])
def test_bias_of_an_unknown_token_is_refused(engine: EngineClient, token: int) -> None:
    """Mlx would write outside of the logits; it must not get there."""
    with pytest.raises(InvalidRequestError) as caught:
        generate(engine, "bias", Sampling(logit_bias=((token, 1.0),)))
    assert "logit_bias" == caught.value.param
    wait_until_idle(engine)


def test_clients_that_leave_before_tokenizing_cost_nothing(engine: EngineClient) -> None:
    """Behind a prompt of megabytes wait others whose clients leave: their places come free."""
    texts = [TextPrompt(f"{index} " + "word 123 " * 300_000) for index in range(6)]
    left = [engine.submit(text, GREEDY) for text in texts]
    for generation in left:
        generation.close()
    assert generate(engine, "short ones do not wait", max_tokens=2).finishes
    wait_until_idle(engine)
    assert ["cancelled"] == [finish.reason for finish in collect(left[-1]).finishes.values()]


def test_more_choices_than_places_are_the_clients_fault(engine: EngineClient) -> None:
    """No amount of waiting helps, so it is no 503."""
    with pytest.raises(InvalidRequestError):
        engine.submit(TextPrompt("many"), GREEDY, n=9)
    assert 0 == engine.in_flight
