"""Requests that were in steps which failed: they are tried again, and the cause is found alone.

After one failure all go on together, because most are accidents. A request that
was in two goes on trial: it is started while nothing else is, until it is past
the place where it was. Others wait meanwhile, but for those that have passed,
which run beside it. Who fails with nobody beside it is the cause, and ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sequence import Request

__all__ = ["Suspects"]

_SUSPICIOUS_FAILURES = 2
"""One failure is more often an accident, and going on together is faster."""
_PROOF_TOKENS = 3
"""A request that fails at a token does it again within so many: mlx-lm computes one ahead of the
one that is handed out."""


class Suspects:
    """Counts failures, and says who is on trial. Owned by the scheduler and its thread.

    It comes to an end: each trial ends the request or brings it further, and
    further each time that all have passed and no request has ended since.
    """

    def __init__(self) -> None:
        self.on_trial: Request | None = None
        """The one request that may be started now; None where all may."""
        self._failures: dict[Request, int] = {}
        """Of each request in failed steps, since it last passed a trial; first come first."""
        self._proof_tokens = _PROOF_TOKENS

    def charge(self, requests: set[Request]) -> set[Request]:
        """Note that a step with these requests failed; return the one that is the cause, if known.

        Where one of them is on trial, the others have passed theirs and are not charged.
        """
        charged = {self.on_trial} if self.on_trial in requests else requests
        for request in sorted(charged, key=lambda each: each.id):
            self._failures[request] = self._failures.get(request, 0) + 1
        self._choose()
        return requests.intersection(self._suspicious()) if len(requests) == 1 else set()

    def acquit(self) -> None:
        """Let the request on trial pass, if it has gone far enough; called after a step went well."""
        trial = self.on_trial
        if trial is None or any(len(each.generated) < self._proof_tokens for each in trial.live):
            return
        del self._failures[trial]
        self.on_trial = None
        self._choose()
        if self.on_trial is None:
            # All have passed: if it happens in company only, they get further each time.
            self._proof_tokens *= 2

    def forget(self, request: Request) -> None:
        """Note that a request has ended, however it did."""
        self._failures.pop(request, None)
        self._proof_tokens = _PROOF_TOKENS
        if request is self.on_trial:
            self.on_trial = None
            self._choose()

    def _choose(self) -> None:
        self.on_trial = self.on_trial or next(iter(self._suspicious()), None)

    def _suspicious(self) -> list[Request]:
        return [each for each, count in self._failures.items() if count >= _SUSPICIOUS_FAILURES]
