"""What the server room is told at start. It never reads settings or the environment itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..engine.protocol import Sampling
from ..resilience.sizing import connection_count, thread_count

if TYPE_CHECKING:
    from ..resilience.api_keys import ApiKey

__all__ = ["RequestDefaults", "ServerOptions"]


@dataclass(frozen=True, slots=True)
class RequestDefaults:
    """What a request gets for a field that it leaves out."""

    sampling: Sampling = field(default_factory=Sampling)
    """OpenAI's values until the model is loaded, then what its authors recommend over them."""
    max_tokens: int = 0
    """Answer tokens of a chat; 0 lets it go on to the end of the context window."""
    completion_max_tokens: int = 16
    """Answer tokens of a legacy completion, 16 as OpenAI has it."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One frozen object for the whole life of the server."""

    served_model_names: tuple[str, ...]
    """Names that requests may use; the first is the one that answers carry."""
    host: str = "127.0.0.1"
    """Loopback: nobody serves to a network by accident."""
    port: int = 8080
    """0 lets the system choose."""
    api_keys: tuple[ApiKey, ...] = ()
    """One of them must come as ``Authorization: Bearer``; none switches the check off."""
    otlp_endpoint: str = ""
    """Where traces and metrics go; empty leaves it to OpenTelemetry's variables."""
    vllm_names: bool = False
    """Whether /metrics has vLLM's names too."""
    metrics_api_key: str = ""
    """What readers of metrics must send; empty lets in clients of this machine alone, by a name
    that is known to be its own."""
    max_body_bytes: int = 10 * 1024 * 1024
    """Beyond the longest conversation that a model can read, below what hurts to hold."""
    keep_alive_seconds: float = 10.0
    """Silence on a stream after which a comment is sent; proxies cut at 30 to 60 s."""
    poll_seconds: float = 0.2
    """How soon a client that left in silence, and the end of the drain, are noticed."""
    exit_without_engine: bool = True
    """Whether the server ends, with an exit code that says so, when no engine will come any more
    after it had one; else it goes on to say that it is not ready."""
    max_batch: int = 32
    max_queue: int = 64
    threads: int = 0
    """0 takes batch + queue + spare, so a refusal and a health check always find one."""
    connection_limit: int = 0
    """Open connections, idle ones included; 0 takes the threads + spare."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the header Host may have beside this machine's and the bound one."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may use the server; CORS is off without any."""
    operations_port: int | None = None
    """A second listener for probes and metrics; None has none, 0 lets the system choose."""
    operations_host: str = "127.0.0.1"
    requests_per_minute: int = 0
    """Of each key; 0 is without limit."""
    tokens_per_minute: int = 0
    """Of each key, prompts and answers together; 0 is without limit."""
    header_seconds: float = 30.0
    """Time a client has to send a request's headers. waitress itself has no such limit."""
    body_seconds: float = 300.0
    """Time a client has to send a whole request: 10 MiB at 35 kB/s."""
    idle_seconds: float = 120.0
    """How long a connection may stay open without a request."""
    request_seconds: float = 3600.0
    """Time for a whole answer, which a client can shorten; 0 is without end."""
    queue_seconds: float = 120.0
    """Time that a request may wait for its turn; 0 is without end."""
    drain_seconds: float = 25.0
    """Time that running requests get to finish after SIGTERM."""
    defaults: RequestDefaults = RequestDefaults()

    @property
    def thread_count(self) -> int:
        """How many threads waitress starts."""
        return thread_count(self.threads, max_batch=self.max_batch, max_queue=self.max_queue)

    @property
    def connection_count(self) -> int:
        """How many connections may be open at once."""
        return connection_count(self.connection_limit, threads=self.thread_count)

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.served_model_names[0]
