"""Prometheus metrics of one replica. Knows the engine's statistics, no routes.

Counters are updated once a request, never once a token. The names prefixed
`vllm:` are the subset that autoscalers and community dashboards look for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from nanochat.serve.bridge import Engine
from nanochat.serve.serving import Serving

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


class _EngineCollector(Collector):
    """Reads the engine when scraped, so that nothing is kept twice."""

    def __init__(self, engine: Engine, serving: Serving, model_id: str) -> None:
        self.follow(engine, serving, model_id)

    def follow(self, engine: Engine, serving: Serving, model_id: str) -> None:
        """Read this engine from now on."""
        self._engine = engine
        self._serving = serving
        self._model_id = model_id

    def collect(self) -> Iterable[Any]:
        stats = self._engine.stats()
        serving = self._serving
        gauges = {
            "nanochat_requests_running": ("Sequences that share the current step", stats.running),
            "nanochat_requests_waiting": ("Sequences that wait for a slot", stats.waiting),
            "nanochat_kv_tokens_capacity": ("Tokens whose keys and values fit", stats.kv_total_tokens),
            "nanochat_kv_tokens_used": ("Tokens whose keys and values are held", stats.kv_used_tokens),
            "nanochat_kv_intact": ("1 while free + used == total held on every idle step", stats.kv_intact),
            "nanochat_ready": ("1 while /ready answers 200", serving.ready),
            "nanochat_draining": ("1 after SIGTERM", serving.leaving or serving.draining),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=float(value))
        counters = {
            "nanochat_engine_steps": ("Engine steps begun; advances while work waits", stats.ticks),
            "nanochat_engine_failures": ("Engine steps that raised", stats.failures),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=float(value))
        for name, text, value in (
            ("vllm:num_requests_running", "Number of requests in model execution batches.", stats.running),
            ("vllm:num_requests_waiting", "Number of requests waiting to be processed.", stats.waiting),
        ):
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model_id], float(value))
            yield family


class Metrics:
    """The registry of one server, and what the routes count."""

    def __init__(self, engine: Engine, serving: Serving, model_id: str) -> None:
        self.registry = CollectorRegistry()
        self._collector = _EngineCollector(engine, serving, model_id)
        self.registry.register(self._collector)
        self._responses = Counter(
            "nanochat_http_requests",
            "Completion requests answered; status 499: the client left first",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "nanochat_request_seconds",
            "From the request's head to the response's end",
            ["route"],
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "nanochat_time_to_first_token_seconds",
            "From the request's head to the first output, streams only",
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.token_gap = Histogram(
            "nanochat_time_per_output_token_seconds",
            "Mean gap between output tokens of one request, streams only",
            buckets=_GAPS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "nanochat_prompt_tokens", "Prompt tokens of answered requests", registry=self.registry
        )
        self.completion_tokens = Counter(
            "nanochat_completion_tokens", "Tokens made for requests", registry=self.registry
        )
        self.tool_calls = Counter(
            "nanochat_tool_calls", "Uses of the calculator by the model", ["outcome"], registry=self.registry
        )
        self.swaps = Counter(
            "nanochat_model_swaps",
            "Changes of the model while the server ran",
            ["outcome"],
            registry=self.registry,
        )
        self._children: dict[tuple[str, int], tuple[Any, Any]] = {}

    def follow(self, engine: Engine, serving: Serving, model_id: str) -> None:
        """Show another engine from now on; what the routes counted stays."""
        self._collector.follow(engine, serving, model_id)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one response."""
        children = self._children.get((route, status))
        if children is None:
            children = (self._responses.labels(route, str(status)), self._seconds.labels(route))
            self._children[route, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def scrape(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)
