"""One publish/subscribe contract over several brokers. See ``docs/broker.md``."""

from .clock import ManualClock, SystemClock
from .connect import Broker, connect
from .errors import (
    BrokerError,
    Closed,
    DeadlineExceeded,
    InvalidMessage,
    LeaseLost,
    MessageTooLarge,
    NotFound,
    PermissionDenied,
    PublishError,
    Unavailable,
)
from .message import Capabilities, Delivery, GroupStats, Lag, Message, Receipt, TopicInfo
from .processing.batcher import Batching
from .processing.breaker import BreakerPolicy
from .processing.dead_letter import OPERATORS, dead_letter_topic
from .processing.handling import Handler
from .processing.loop import Processor
from .processing.outcomes import Done, Outcome, Reject, Retry, RetryPolicy
from .processing.watch import Failure, Held, Histogram, Totals, Watch
from .subscription import Subscription

__all__ = [
    "OPERATORS",
    "Batching",
    "BreakerPolicy",
    "Broker",
    "BrokerError",
    "Capabilities",
    "Closed",
    "DeadlineExceeded",
    "Delivery",
    "Done",
    "Failure",
    "GroupStats",
    "Handler",
    "Held",
    "Histogram",
    "InvalidMessage",
    "Lag",
    "LeaseLost",
    "ManualClock",
    "Message",
    "MessageTooLarge",
    "NotFound",
    "Outcome",
    "PermissionDenied",
    "Processor",
    "PublishError",
    "Receipt",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Subscription",
    "SystemClock",
    "TopicInfo",
    "Totals",
    "Unavailable",
    "Watch",
    "connect",
    "connect_blocking",
    "dead_letter_topic",
]


def __getattr__(name: str) -> object:
    # anyio is imported only by those who use the blocking form.
    if name == "connect_blocking":
        from .blocking import connect_blocking

        return connect_blocking
    raise AttributeError(f"module 'broker' has no attribute {name!r}")
