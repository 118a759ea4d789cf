"""OpenTelemetry spans through the broker: ``send``, ``process`` and ``settle``, tied together by the message.

Off unless somebody asked: an application that has set a tracer provider, or ``configure`` in one of our own
programs with ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_TRACES_EXPORTER`` set. While it is off nothing of
OpenTelemetry is imported. A message that is published carries the W3C ``traceparent`` of its ``send`` span,
unless it has one already; retries and dead letters keep it, so a trace survives every way through a queue.

Names and values: opentelemetry.io/docs/specs/semconv/messaging (status: Development), all of them here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .logs import log
from .message import Capabilities, Delivery, Message

if TYPE_CHECKING:
    from .processing.outcomes import Reject, Retry
    from .processing.verdicts import Handled

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTERS = "OTEL_TRACES_EXPORTER"
_PARENT = "traceparent"
# What Google's own client calls it.
_GOOGLE_PARENT = "googclient_traceparent"
# The specification's default for the links of one span; the SDK would drop the rest.
_MOST_LINKS = 128
# An exporter that finds nobody must not hold up the end of a program for long, seconds.
_EXPORT_TIMEOUT_S = 3.0
_SYSTEMS = {"kafka": "kafka", "pubsub": "gcp_pubsub"}

_spans: tuple[Any, Spans] | None = None


def configure(service: str) -> bool:
    """Send spans where the environment says, if it does; for programs, not for libraries.

    Args:
        service: name of this program, unless ``OTEL_SERVICE_NAME`` says another.

    Returns:
        Whether spans are sent from now on.

    Raises:
        ValueError: ``OTEL_TRACES_EXPORTER`` names none that is known here.
    """
    env = os.environ
    asked = [each.strip() for each in env.get(_EXPORTERS, "").split(",") if each.strip()]
    if not asked and any(env.get(name) for name in _ENDPOINTS):
        asked = ["otlp"]
    for each in asked:
        if each not in ("otlp", "console", "none"):
            raise ValueError(f"{_EXPORTERS}: {each!r} is not known here; known are otlp, console, none")
    wanted = [each for each in asked if each != "none"]
    if not wanted or env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporters = [_exporter(each) for each in wanted]
    except ImportError as error:
        log.warning("no spans are sent: %s; install them with `pip install 'couturier[otel]'`", error)
        return False
    # An explicit name would win over OTEL_SERVICE_NAME.
    name = env.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return True


def _exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        # Standard output is data only.
        return ConsoleSpanExporter(out=sys.stderr)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    given = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{which}TIMEOUT") for which in ("", "TRACES_"))
    return OTLPSpanExporter() if given else OTLPSpanExporter(timeout=_EXPORT_TIMEOUT_S)


def spans() -> Spans | None:
    """Return what makes spans, or None while nobody asked for any."""
    global _spans  # noqa: PLW0603 - replaced as a whole, so threads may share it
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if _spans is None or _spans[0] is not provider:
        if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            return None
        _spans = (provider, Spans(provider.get_tracer("couturier.broker")))
    return _spans[1]


@contextlib.contextmanager
def step(name: str, count: int) -> Iterator[None]:
    """Span a part of a handler's work on some messages, below the ``process`` span that is around it."""
    made = spans()
    if made is None:
        yield
        return
    with made.step(name, count):
        yield


class Spans:
    """Makes the spans of this package.

    Args:
        tracer: of OpenTelemetry.
    """

    def __init__(self, tracer: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def send(
        self, topic: str, messages: Sequence[Message], capabilities: Capabilities
    ) -> Iterator[Sequence[Message]]:
        """Span a ``publish``; yield the messages to send, which carry its context.

        A message that carries a context already keeps it, and the span is linked to it. So does one that has
        no room for more attributes.
        """
        attributes = _attributes(capabilities.backend, "send", topic, None, messages)
        links = self._links(each for each in messages if _PARENT in each.attributes)
        with self._span(f"send {topic}", self._trace.SpanKind.PRODUCER, attributes, links):
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            room = capabilities.max_attributes - len(carrier)
            yield [
                each
                if not carrier or _PARENT in each.attributes or len(each.attributes) > room
                else replace(each, attributes={**each.attributes, **carrier})
                for each in messages
            ]

    @contextlib.contextmanager
    def process(self, backend: str, topic: str, group: str, batch: Sequence[Delivery]) -> Iterator[None]:
        """Span the handling of a batch: linked to what created its messages, child of a single one."""
        messages = [each.message for each in batch]
        attributes = _attributes(backend, "process", topic, group, messages)
        if len(batch) == 1:
            attributes |= _of_one(backend, batch[0])
        parent = self._context(messages[0].attributes) if len(batch) == 1 else None
        kind = self._trace.SpanKind.CONSUMER
        with self._span(f"process {topic}", kind, attributes, self._links(messages), parent):
            yield

    @contextlib.contextmanager
    def step(self, name: str, count: int) -> Iterator[None]:
        """Span a part of the handling of ``count`` messages."""
        with self._span(name, self._trace.SpanKind.INTERNAL, {"messaging.batch.message_count": count}, []):
            yield

    @contextlib.contextmanager
    def settle(self, backend: str, topic: str, group: str, handled: Handled) -> Iterator[None]:
        """Span the settling of a batch; what failed in it is noted on the span around."""
        around = self._trace.get_current_span()
        bad: list[tuple[Delivery, Retry | Reject]] = [*handled.failed, *handled.rejected]
        for delivery, outcome in bad[:_MOST_LINKS]:
            event = {"messaging.message.id": delivery.message.id, "error.type": _kind_of(outcome)}
            around.add_event("message failed", {**event, "couturier.stage": outcome.stage})
        if bad:
            around.set_attribute("error.type", _kind_of(bad[0][1]))
            around.set_status(
                self._trace.Status(self._trace.StatusCode.ERROR, f"{len(bad)} message(s) failed")
            )
        count = len(handled.done) + len(bad) + len(handled.untried)
        attributes = _attributes(backend, "settle", topic, group, ())
        attributes["messaging.batch.message_count"] = count
        with self._span(f"settle {topic}", self._trace.SpanKind.CLIENT, attributes, []):
            yield

    @contextlib.contextmanager
    def _span(
        self, name: str, kind: Any, attributes: Mapping[str, Any], links: Sequence[Any], parent: Any = None
    ) -> Iterator[None]:
        """Make a span; what goes wrong with spans must not hurt what is done inside."""
        try:
            span = self._tracer.start_span(
                name, context=parent, kind=kind, attributes=attributes, links=links
            )
        except Exception as error:
            log.warning("no span %r: %s", name, error)
            yield
            return
        try:
            with self._trace.use_span(span, record_exception=False):
                try:
                    yield
                except Exception as error:
                    span.set_attribute("error.type", type(error).__qualname__)
                    raise
        finally:
            try:
                span.end()
            except Exception as error:
                log.warning("the span %r is lost: %s", name, error)

    def _links(self, messages: Any) -> list[Any]:
        """Link the contexts that messages carry, each once."""
        found: dict[tuple[int, int], Any] = {}
        for message in messages:
            if len(found) == _MOST_LINKS:
                break
            context = self._context(message.attributes)
            if context is not None:
                span_context = self._trace.get_current_span(context).get_span_context()
                found[(span_context.trace_id, span_context.span_id)] = span_context
        return [self._trace.Link(each) for each in found.values()]

    def _context(self, attributes: Mapping[str, str]) -> Any:
        """Return the context that a message carries, or None without a valid one."""
        carrier = dict(attributes)
        if _PARENT not in carrier and _GOOGLE_PARENT in carrier:
            carrier[_PARENT] = carrier[_GOOGLE_PARENT]
        if _PARENT not in carrier:
            return None
        context = self._propagator.extract(carrier)
        return context if self._trace.get_current_span(context).get_span_context().is_valid else None


def _attributes(
    backend: str, operation: str, topic: str, group: str | None, messages: Sequence[Message]
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "messaging.system": _SYSTEMS.get(backend, backend),
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }
    if group is not None:
        attributes["messaging.consumer.group.name"] = group
        if backend == "pubsub":
            attributes["messaging.destination.subscription.name"] = f"{topic}.{group}"
    if len(messages) == 1:
        attributes["messaging.message.id"] = messages[0].id
        attributes["messaging.message.body.size"] = len(messages[0].data)
    elif messages:
        attributes["messaging.batch.message_count"] = len(messages)
    return attributes


def _of_one(backend: str, delivery: Delivery) -> dict[str, Any]:
    """What is said of a message that is alone in its batch."""
    attributes: dict[str, Any] = {"couturier.attempt": delivery.attempt}
    key = delivery.message.key
    if backend == "pubsub":
        attributes["messaging.gcp_pubsub.message.delivery_attempt"] = delivery.attempt
        if key is not None:
            attributes["messaging.gcp_pubsub.message.ordering_key"] = key
    if backend == "kafka":
        native = getattr(delivery.receipt, "native", None)
        if native is not None:
            attributes["messaging.destination.partition.id"] = str(native.partition())
            attributes["messaging.kafka.offset"] = native.offset()
        if key is not None:
            attributes["messaging.kafka.message.key"] = key
    return attributes


def _kind_of(outcome: Retry | Reject) -> str:
    """A word of few values for what went wrong: the reason of a rejection, the class of an error."""
    reason = getattr(outcome, "reason", None)
    if reason is not None:
        return str(reason)
    return type(outcome.error).__qualname__ if isinstance(outcome.error, BaseException) else "error"
