"""What each run of the suite cannot do, in full, and the page that shows it."""

from __future__ import annotations

from backends import PAGE, RUNS, page

from broker.conformance import check_names
from broker.conformance.ordering import Ordering

RESTART = {"messages_survive_a_restart", "verdicts_survive_a_restart", "a_restart_in_mid_run_loses_nothing"}
KEY = {name for name in check_names(Ordering) if hasattr(getattr(Ordering, f"test_{name}"), "claim")}
CANCEL = {"cancelling_receive_loses_nothing", "cancelling_process_hands_everything_back"}
# Two members on one partition, which Kafka does not have.
SHARED = {
    "a_delayed_message_does_not_come_early",
    "a_full_member_keeps_its_leases",
    "a_late_verdict_is_refused_and_disturbs_nobody",
    "a_late_verdict_leaves_the_attempts_alone",
    "a_lease_is_kept_while_a_delivery_is_open",
    "a_lost_delivery_cannot_be_forwarded",
    "a_message_taken_by_a_cancelled_receive_stays_leased",
    "batches_whose_leases_were_lost_are_counted",
    "closing_late_disturbs_nobody",
    "surplus_members_receive_nothing",
    "what_is_still_held_is_settled_beside_what_is_lost",
}
# The mock cluster gives every topic four partitions.
FOUR = {
    "browse_shows_what_is_not_settled_in_order",
    "lag_has_a_part_for_every_partition",
    "topics_are_listed_with_their_groups",
}
# Nobody waits so long, or the broker does it when it sees fit.
AGE = {"what_is_older_than_its_retention_goes"}
ADMIN = {
    "a_removed_group_is_gone_and_the_others_stay",
    "a_topic_with_a_retention_keeps_what_is_younger",
}
SKIPS = {
    "memory": RESTART,
    "sqlite": set(),
    "kafka": KEY | SHARED | AGE,
    # Its group protocol leaves partitions where they are.
    "mock": KEY | SHARED - {"surplus_members_receive_nothing"} | RESTART | FOUR | AGE | ADMIN,
    "emulator": KEY | RESTART | AGE,
    "fake": KEY | AGE,
    "once": KEY | AGE,
    "blocking": RESTART | CANCEL,
}


def test_skips_are_pinned() -> None:
    """A new skip needs a line here, and a reason that convinces a reviewer."""
    assert {name: set(harness.impossible) for name, harness in RUNS.items()} == SKIPS
    assert all(len(reason) > 20 for harness in RUNS.values() for reason in harness.impossible.values())


def test_the_page_is_up_to_date() -> None:
    """``docs/backends.md`` is what ``python tests/broker/backends.py`` writes."""
    assert PAGE.read_text() == page()
