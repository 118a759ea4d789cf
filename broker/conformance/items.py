"""What a suite for message brokers must check, item by item, and the checks that do.

Items 1 to 29 are those of the suites of Go CDK (``pubsub/drivertest``), Watermill (``pubsub/tests``) and Dapr
(``tests/conformance/pubsub``); items 30 to 48 are in none of these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a suite must check.

    Attributes:
        text: what must hold.
        checks: names of the checks that hold it, as ``check_names`` lists them.
        beyond: what of it no portable check can see, and where that is tested; "" if nothing.
    """

    text: str
    checks: tuple[str, ...]
    beyond: str = ""


def _item(text: str, checks: str, beyond: str = "") -> Item:
    return Item(text, tuple(checks.split()), beyond)


ITEMS: dict[int, Item] = {
    1: _item(
        "Exactly what was published is received, with ids that can be logged",
        "what_is_published_is_received every_delivery_is_dated_and_identified every_field_round_trips",
    ),
    2: _item("Two groups of one topic each get all messages", "every_group_gets_everything"),
    3: _item("Members of one group share the messages", "members_of_a_group_share"),
    4: _item("JSON and empty bodies pass", "json_and_empty_bodies_pass"),
    5: _item("Bodies that are no text pass byte for byte", "any_bytes_pass"),
    6: _item("Odd attribute names and values pass", "odd_attributes_pass"),
    7: _item(
        "What cannot travel is refused at publish, never mangled",
        "raw_bytes_of_foreign_attributes_pass fields_that_cannot_travel_are_refused"
        " attribute_limits_are_checked_before_sending",
    ),
    8: _item("Nack of everything brings everything again", "nack_of_everything_brings_everything_again"),
    9: _item("Nack, then success, loses nothing", "failing_now_and_then_loses_nothing"),
    10: _item("Many failing members in turn, then a good one", "many_failing_members_in_turn_lose_nothing"),
    11: _item(
        "Double ack and ack-then-nack are silent and shield nothing",
        "the_first_verdict_is_final a_repeated_ack_does_not_shield_the_others"
        " a_cancelled_verdict_can_be_given_again",
    ),
    12: _item(
        "Batches of any size, sent and acked",
        "verdicts_come_in_batches_of_any_size a_large_publish_is_complete_and_in_order"
        " an_empty_publish_does_nothing a_single_message_is_not_a_list",
    ),
    13: _item(
        "Publishing to a missing topic is NotFound",
        "publishing_to_an_unknown_topic_is_refused names_are_checked_before_anything_is_sent",
    ),
    14: _item(
        "Receiving from a missing group is NotFound and does not hang",
        "receive_on_what_was_never_ensured_is_refused process_creates_no_input",
    ),
    15: _item(
        "Publishing after close fails; a second close does nothing",
        "a_client_that_is_not_open_is_refused closing_a_client_twice_does_nothing",
    ),
    16: _item(
        "Receiving and settling after close fail",
        "receive_after_close_or_drain_is_refused settling_after_close_is_refused",
    ),
    17: _item(
        "Cancelled calls end promptly",
        "cancelling_receive_loses_nothing a_cancelled_publish_ends_promptly_and_stores_whole_messages"
        " a_cancelled_verdict_can_be_given_again cancelling_process_hands_everything_back",
    ),
    18: _item(
        "The end of a subscription ends its iteration and its tasks",
        "iteration_ends_when_the_subscription_ends a_waiting_receive_ends_when_the_subscription_closes"
        " closing_leaves_no_task_behind",
    ),
    19: _item(
        "A delivery can be asked whether it is still held",
        "a_delivery_is_held_until_its_verdict a_late_verdict_is_refused_and_disturbs_nobody",
        "a delivery has no context that could be cancelled: `Subscription.holds` answers when asked",
    ),
    20: _item(
        "An escape hatch yields the documented native type and refuses others",
        "the_native_record_is_there_where_one_is_declared",
        "there is one for a delivery; clients, topics and errors of an SDK stay inside its driver",
    ),
    21: _item("Two topics on one client do not mix", "two_topics_do_not_mix"),
    22: _item("Twenty topics at once on one client", "twenty_topics_at_once"),
    23: _item("Fifty members and five thousand messages", "many_members_receive_everything"),
    24: _item("Ten members open and close at once and lose nothing", "members_that_come_and_go_lose_nothing"),
    25: _item(
        "Closing in mid-stream again and again loses nothing",
        "closing_in_mid_stream_again_and_again_loses_nothing",
    ),
    26: _item("Closing loses nothing that was published", "what_publish_returned_for_is_stored"),
    27: _item(
        "Order by key with several members, one message of a key at a time",
        "the_messages_of_a_key_come_one_by_one_in_order order_holds_with_several_members"
        " order_outlives_a_crash",
    ),
    28: _item(
        "A restart of the broker in mid-run loses nothing",
        "a_restart_in_mid_run_loses_nothing messages_survive_a_restart verdicts_survive_a_restart",
    ),
    29: _item(
        "A new group reads the past where it is kept; bulk publish says what failed; ping",
        "a_group_starts_where_it_was_told one_bad_message_fails_alone describe_tells_facts",
    ),
    30: _item(
        "Acks out of order: only what was not acked comes again, and it stops no other partition",
        "acks_may_come_in_any_order verdicts_survive_a_restart",
        "holes in the offsets (transaction markers, compaction) exist on Kafka alone:"
        " `tests/broker/test_kafka_holes.py`, `test_offsets.py`",
    ),
    31: _item(
        "A crash before ack brings the message again, after a durable ack it does not",
        "a_crash_before_ack_brings_the_message_again a_crash_after_flush_undoes_no_verdict"
        " verdicts_are_visible_to_others_without_flush",
    ),
    32: _item(
        "A late verdict is refused by type and moves nothing of the new owner's",
        "a_late_verdict_is_refused_and_disturbs_nobody a_late_verdict_leaves_the_attempts_alone"
        " what_is_still_held_is_settled_beside_what_is_lost a_lost_delivery_cannot_be_forwarded"
        " closing_late_disturbs_nobody",
    ),
    33: _item(
        "Members that join and leave during work: what is done stays done, the rest comes again",
        "what_is_done_stays_done_while_members_join_and_leave surplus_members_receive_nothing"
        " a_member_that_gets_its_own_message_again_holds_the_new_one",
    ),
    34: _item(
        "A lease is kept while its holder lives and passes on when it is frozen or dead",
        "a_lease_is_kept_while_a_delivery_is_open what_a_dead_member_held_comes_after_its_lease"
        " a_full_member_keeps_its_leases crash_after_crash_loses_nothing"
        " a_late_verdict_is_refused_and_disturbs_nobody",
    ),
    35: _item(
        "A delayed message does not come early, comes, and stops nobody meanwhile",
        "a_delayed_message_does_not_come_early delays_end_one_by_one others_flow_while_a_message_is_delayed"
        " a_delay_outlives_the_member_that_asked_for_it too_many_delayed_messages_pause_the_intake",
    ),
    36: _item(
        "The attempt counter starts at 1, counts failures alone and survives restarts",
        "only_recorded_failures_count_as_attempts attempts_outlive_every_client verdicts_survive_a_restart",
    ),
    37: _item(
        "Exhausted means one dead letter, then the ack; no letter, no ack",
        "attempts_exhausted_means_one_dead_letter a_dead_letter_that_cannot_be_stored_is_waited_for"
        " what_forward_returned_for_is_stored dead_letters_have_a_place_before_the_first_message",
    ),
    38: _item(
        "A message that can never succeed leaves as it came, at once, and stalls nothing",
        "reject_dead_letters_at_once only_the_raiser_is_blamed any_text_fits_on_a_dead_letter",
    ),
    39: _item(
        "Dead letters can be replayed, and die again with new reasons",
        "a_dead_letter_can_be_replayed_and_die_again a_message_can_go_round_in_circles",
        "the loop guard and resuming belong to the command: tests of `couturier dlq replay`",
    ),
    40: _item(
        "What is in flight is bounded, and leases are kept while intake pauses",
        "max_in_flight_is_never_exceeded max_in_flight_holds_for_concurrent_receives"
        " max_bytes_is_never_exceeded a_body_over_max_bytes_comes_alone a_full_member_keeps_its_leases"
        " an_outage_pauses_the_intake_and_keeps_the_leases no_more_batches_run_than_allowed",
    ),
    41: _item("One slow key does not stop the others", "a_blocked_key_does_not_stop_the_others"),
    42: _item(
        "A body at the limit passes, one byte more is refused before anything is sent",
        "a_body_at_the_limit_passes_and_one_byte_more_is_refused",
        "bodies over the limit by claim check are above the driver: tests of `broker.claims`",
    ),
    43: _item(
        "A full send queue makes publish wait, not fail",
        "hundreds_of_publishes_at_once_are_all_stored what_publish_returned_for_is_stored",
    ),
    44: _item("One bad message of a batch fails alone", "one_bad_message_fails_alone"),
    45: _item(
        "Cancelling a receive never drops a message",
        "cancelling_receive_loses_nothing a_message_taken_by_a_cancelled_receive_stays_leased",
    ),
    46: _item(
        "Same verb, same effect; a graceful stop with a deadline",
        "verdicts_on_one_batch_may_be_mixed release_brings_a_message_again_untried"
        " drain_waits_for_open_deliveries"
        " drain_gives_up_after_its_timeout stop_finishes_what_is_held_and_takes_no_more"
        " a_drain_that_takes_too_long_is_an_error_and_loses_nothing",
        "signals belong to the command: tests of `couturier worker`",
    ),
    47: _item(
        "Trace context and CloudEvents id survive redelivery",
        "trace_context_and_id_survive_every_way a_redelivery_is_the_same_message",
        "the official CloudEvents SDK reads the same: `tests/broker/test_cloudevents.py`",
    ),
    48: _item("Reserved attribute names are safe", "reserved_attribute_names_are_safe"),
}
