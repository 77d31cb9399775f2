//! Faults on purpose: the simulation finds each of them, and so would find one that nobody planted.

use fieldgate::planted::Bug;

use crate::seeds::search;

/// Looks for a planted fault in so many seeds. The words of the finding tell that it was found for
/// what it is.
fn is_found(bug: Bug, within: u64, words: &[&str]) {
    let (_, failure) = search(within, Some(bug));
    let Some(failure) = failure else { panic!("{bug:?} is not found in {within} seeds") };
    println!("{bug:?} is found in seed {}: {}", failure.seed, failure.why);
    let is_known = words.iter().any(|words| failure.why.contains(words));
    assert!(is_known, "{bug:?} breaks something else: {}", failure.why);
}

#[test]
fn a_receipt_for_a_failed_write_is_found() {
    is_found(Bug::ReceiptAfterFailedWrite, 200, &["promise 1"]);
}

#[test]
fn a_group_that_was_never_synced_is_found() {
    is_found(Bug::SyncLeftOut, 200, &["promise 1", "promise 3", "promise 4"]);
}

#[test]
fn acknowledgements_out_of_order_are_found() {
    is_found(Bug::AcksOutOfOrder, 200, &["out of order", "promise 1"]);
}

#[test]
fn a_refusal_that_is_acknowledged_before_it_is_told_is_found() {
    is_found(Bug::RefusalReceiptEarly, 100, &["promise 1"]);
}

#[test]
fn a_redelivery_that_is_taken_for_known_is_found() {
    is_found(Bug::DupTakenForKnown, 100, &["promise 1"]);
}

#[test]
fn an_ack_before_the_engine_is_found() {
    is_found(Bug::AckBeforeStore, 100, &["promise 1"]);
}

#[test]
fn a_finished_epoch_that_is_not_listed_is_found() {
    is_found(Bug::FinishedEpochUnlisted, 2000, &["promise 2"]);
}

#[test]
fn a_trim_of_one_record_too_many_is_found() {
    is_found(Bug::TrimTooFar, 400, &["promise 1"]);
}

#[test]
fn an_eviction_that_is_not_told_is_found() {
    is_found(Bug::EvictionUntold, 400, &["promise 1"]);
}

#[test]
fn a_window_that_is_not_kept_to_is_found() {
    is_found(Bug::WindowIgnored, 100, &["window", "pauses"]);
}

#[test]
fn a_wrong_number_after_a_hole_is_found() {
    is_found(Bug::GapOneTooFar, 400, &["goes on with"]);
}

#[test]
fn a_poison_record_that_is_sent_for_ever_is_found() {
    is_found(Bug::PoisonNeverSkipped, 100, &["does not come to rest"]);
}

#[test]
fn a_dead_link_that_counts_as_alive_is_found() {
    is_found(Bug::DeadLinkNeverFound, 1000, &["has not noticed", "come to rest"]);
}

#[test]
fn a_pause_that_counts_against_a_living_link_is_found() {
    is_found(Bug::PauseCountsAsWaiting, 1000, &["which lives"]);
}

#[test]
fn a_back_off_that_does_not_grow_is_found() {
    is_found(Bug::BackOffNeverGrows, 400, &["attempts within a minute"]);
}

#[test]
fn a_drain_that_is_not_kept_to_is_found() {
    is_found(Bug::DrainIgnored, 200, &["before the hub wants it"]);
}

#[test]
fn a_session_that_comes_back_at_once_after_a_take_over_is_found() {
    is_found(Bug::TakeOverRushed, 200, &["before the hub wants it"]);
}

#[test]
fn a_delivery_that_the_journal_does_not_know_is_found() {
    is_found(Bug::CommandNotJournalled, 400, &["promise 4"]);
}

#[test]
fn a_command_that_runs_again_is_found() {
    is_found(Bug::CommandRunAgain, 400, &["promise 4"]);
}

#[test]
fn a_final_state_that_the_journal_does_not_know_is_found() {
    is_found(Bug::FinalBeforeJournal, 1000, &["promise 4", "open command Some"]);
}

#[test]
fn a_command_that_runs_after_its_time_is_found() {
    is_found(Bug::ExpiredCommandRuns, 200, &["promise 4"]);
}
