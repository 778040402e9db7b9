"""What is recorded of the prompts of one request, of which some have not been heard of."""

from __future__ import annotations

import time

from mlx_pharos.engine.generation import Generation
from mlx_pharos.engine.protocol import Accepted, Delta, Finish, Started
from mlx_pharos.server.submission import Submission, combined_report


def _submission(request_id: int) -> Submission:
    generation = Generation(request_id, n=1, cancel=lambda _: None, pace=lambda: 0.0)
    return Submission(generation, first_choice=0, choices=1)


def _deliver_all(submission: Submission) -> None:
    """Let the engine accept, begin and end a prompt of 7 tokens, of which 3 were stored, with one."""
    generation = submission.generation
    request_id = generation.id
    generation.begun = Started(request_id, 0, 101.0, 3)
    generation.first_token_at = 102.0
    for event in (
        Accepted(request_id, 7, 100.0),
        Delta(request_id, 0, (1,), "x", ()),
        Finish(request_id, 0, "length", 7, 3, 1, 100.0, 101.0, 102.0, 102.0),
    ):
        generation.deliver(event)


def test_what_has_come_counts_when_there_is_no_time_to_wait() -> None:
    """One prompt is still tokenized when its client leaves, the next one has run to its end."""
    unheard, done = _submission(1), _submission(2)
    _deliver_all(done)
    for each in (unheard, done):
        each.settle(time.monotonic())
    report = combined_report([unheard, done])
    assert (100.0, 101.0, 102.0) == (report.accepted_at, report.prefill_at, report.first_token_at)
    assert (7, 3, 1) == (report.prompt_tokens, report.cached_tokens, report.completion_tokens)
    assert ("length",) == report.endings
    assert 0.0 == report.finished_at


def test_what_began_before_it_was_heard_of_has_no_times() -> None:
    """The reader knows of a beginning before the request's own thread does: no time without the other."""
    submission = _submission(1)
    submission.generation.begun = Started(1, 0, 101.0, 3)
    submission.settle(time.monotonic())
    report = combined_report([submission])
    assert (0.0, 0.0, 0) == (report.accepted_at, report.prefill_at, report.cached_tokens)


def test_what_came_with_the_acceptance_counts() -> None:
    """All of a short answer came in one look, and its client had left by then."""
    submission = _submission(1)
    _deliver_all(submission)
    submission.accept(1.0)
    assert submission.generation.ended
    submission.settle(time.monotonic())
    report = combined_report([submission])
    assert (7, 3, 1) == (report.prompt_tokens, report.cached_tokens, report.completion_tokens)
    assert 102.0 == report.finished_at
