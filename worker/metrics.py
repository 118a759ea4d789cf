"""The figures of one worker, as Prometheus reads them.

Nothing is counted here: a scrape reads what the processing loop, the handler and the engine count anyway, so
that figures cost the way of a message nothing and equal the books. No label takes a value from a message,
except the reason of a dead letter and the class of a prediction, which our own code chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from broker import Histogram

    from .observation import Observation


class WorkerCollector(Collector):
    """Yields the figures at every scrape.

    Args:
        seen: the worker.
    """

    def __init__(self, seen: Observation) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also those that count nothing yet."""
        yield from self._messages()
        yield from self._answers()
        yield from self._quality()
        yield from self._drift()
        yield from self._times()
        yield from self._state()
        yield from self._backlog()

    def _messages(self) -> Iterator[Metric]:
        seen, totals = self._seen, self._seen.watch.totals
        consumed = CounterMetricFamily(
            "couturier_messages_consumed",
            "Messages by what became of them: ok (acked), retry (failed, comes again), dead (dead letter), "
            "dropped, lost_lease (settled too late; another worker has it).",
            labels=("backend", "topic", "outcome"),
        )
        for outcome, count in (
            ("ok", totals.done),
            ("retry", totals.retried),
            ("dead", totals.dead_lettered),
            ("dropped", totals.dropped),
            ("lost_lease", totals.lost_leases),
        ):
            consumed.add_metric((seen.backend, seen.settings.topic, outcome), count)
        yield consumed
        letters = CounterMetricFamily("couturier_dead_letters", "Dead letters by reason.", labels=("reason",))
        for reason, count in sorted(seen.watch.dead_letters.copy().items()):
            letters.add_metric((reason,), count)
        yield letters

    def _answers(self) -> Iterator[Metric]:
        tally, quality = self._seen.handler.tally, self._seen.handler.quality
        rows = CounterMetricFamily(
            "couturier_rows",
            "Result rows: new, replay (there already, the same), conflict (there already, different: the "
            "first was kept), refused (by the database, for what it says).",
            labels=("outcome",),
        )
        for outcome, count in (
            ("new", tally.rows),
            ("replay", tally.replays),
            ("conflict", tally.conflicts),
            ("expired", tally.expired),
            ("refused", tally.refused),
        ):
            rows.add_metric((outcome,), count)
        yield rows
        predictions = CounterMetricFamily(
            "couturier_predictions", "Predictions by class.", labels=("class_name",)
        )
        for name, count in sorted(quality.predictions.copy().items()):
            predictions.add_metric((name,), count)
        yield predictions
        abstentions = CounterMetricFamily(
            "couturier_abstentions",
            "Predictions that the model does not stand by: outlier (no known kind of image), unsure.",
            labels=("why",),
        )
        for why in ("outlier", "unsure"):
            abstentions.add_metric((why,), quality.abstentions[why])
        yield abstentions

    def _quality(self) -> Iterator[Metric]:
        quality = self._seen.handler.quality
        yield _histogram(
            "couturier_confidence", "Confidence of the predictions, calibrated, 0 to 1.", quality.confidence
        )
        yield _histogram(
            "couturier_brightness",
            "Mean pixel of an image as the model gets it, gray levels of 0 to 255.",
            quality.brightness,
        )
        yield CounterMetricFamily(
            "couturier_blank_images", "Images on which nothing is to be seen.", value=quality.blank
        )

    def _drift(self) -> Iterator[Metric]:
        """Yield how far the newest images are from the model's reference; nothing while it is not known."""
        psi, _, window, reference = self._seen.handler.quality.drift()
        index = GaugeMetricFamily(
            "couturier_drift_psi",
            "Population stability index of the newest images against the model's reference: of the shares "
            "of classes, confidence and brightness; above 0.2 somebody should look.",
            labels=("of",),
        )
        for name, value in psi.items():
            index.add_metric((name,), value)
        yield index
        for name, about, counts in (
            ("window", "the newest images", window),
            ("reference", "the images of the model's reference; none if it has no reference", reference),
        ):
            yield GaugeMetricFamily(
                f"couturier_{name}_images", f"Number of {about}.", value=counts.images if counts else 0
            )
            shares = GaugeMetricFamily(
                f"couturier_{name}_class_ratio", f"Share of a class in {about}.", labels=("class_name",)
            )
            rates = GaugeMetricFamily(
                f"couturier_{name}_ratio",
                f"Share of {about} with low_confidence (0.5 or less), blank, abstained.",
                labels=("of",),
            )
            if counts and counts.images:
                for label, count in sorted(counts.classes.items()):
                    shares.add_metric((label,), count / counts.images)
                for what, ratio in counts.ratios().items():
                    rates.add_metric((what,), ratio)
            yield shares
            yield rates

    def _times(self) -> Iterator[Metric]:
        watch = self._seen.watch
        yield _histogram(
            "couturier_process_duration_seconds",
            "Time of one batch in the handler: decode, predict and write.",
            watch.handler_seconds,
        )
        yield _histogram(
            "couturier_inference_duration_seconds",
            "Time of one batch in the engine: decode and predict.",
            self._seen.engine.seconds,
        )
        yield _histogram(
            "couturier_sink_write_duration_seconds",
            "Time of one write of rows to the sink, where it came through.",
            self._seen.handler.sink.seconds,
        )
        yield _histogram("couturier_batch_size", "Messages of one batch.", watch.batch_size)
        yield _histogram(
            "couturier_end_to_end_latency_seconds",
            "From published, by the publisher's clock, to settled; of up to 8 messages of a batch.",
            watch.end_to_end_seconds,
        )

    def _state(self) -> Iterator[Metric]:
        seen, engine = self._seen, self._seen.engine
        yield GaugeMetricFamily(
            "couturier_in_flight_messages", "Messages that this worker holds.", value=len(seen.watch.held)
        )
        yield GaugeMetricFamily(
            "couturier_oldest_message_age_seconds",
            "Age since publication of the oldest message that this worker holds; 0 when it holds none.",
            value=seen.oldest_age_s(),
        )
        yield GaugeMetricFamily(
            "couturier_outage",
            "1 while this worker waits for a results database, dead-letter topic or broker to come back.",
            value=float(seen.watch.outage is not None),
        )
        yield CounterMetricFamily(
            "couturier_sink_errors",
            "Writes that the sink did not take; each is tried again.",
            value=seen.handler.sink.errors,
        )
        yield CounterMetricFamily(
            "couturier_engine_restarts",
            "Restarts of the process that decodes and predicts.",
            value=engine.restarts,
        )
        yield CounterMetricFamily(
            "couturier_engine_crashes",
            "Crashes of the process that decodes and predicts.",
            value=engine.crashes,
        )
        name, version, sha256, kind = engine.model
        yield InfoMetricFamily(
            "couturier_model",
            "The model.",
            value={"name": name, "version": version, "sha256": sha256, "engine": kind},
        )
        yield InfoMetricFamily("couturier_build", "This software.", value={"version": seen.version})

    def _backlog(self) -> Iterator[Metric]:
        """Yield what the broker counts for the whole group; nothing while it is not known."""
        seen = self._seen
        lag = GaugeMetricFamily(
            "couturier_consumer_lag_messages",
            "Messages that the group has not finished, of all its workers; by partition where there are any.",
            labels=("topic", "group", "partition"),
        )
        for part in seen.backlog.parts():
            number = "" if part.partition is None else str(part.partition)
            lag.add_metric((seen.settings.topic, seen.settings.group, number), part.unsettled)
        yield lag
        drain_s = seen.drain_s()
        if drain_s is not None:
            yield GaugeMetricFamily(
                "couturier_estimated_drain_seconds",
                "Time that the group needs for its backlog at its rate of the last minute; where the broker "
                "does not count, how long what this worker holds has waited.",
                value=drain_s,
            )


def _histogram(name: str, about: str, figures: Histogram) -> HistogramMetricFamily:
    total, buckets = 0, []
    for bound, count in zip((*figures.bounds, "+Inf"), tuple(figures.counts), strict=True):
        total += count
        buckets.append((str(bound), float(total)))
    return HistogramMetricFamily(name, about, buckets=buckets, sum_value=figures.sum)
