//! The list of cases, and how one is run.

use std::{env, future::Future, panic::AssertUnwindSafe};

use distlock_core::Backend;
use futures_util::FutureExt as _;

use crate::{Setup, Stage};

/// Tests a store: one `#[test]` for each case. See the crate's page.
///
/// Takes the path of an `async fn() -> Setup<B>`.
#[macro_export]
macro_rules! suite {
    ($setup:path) => {
        $crate::__suite! {
            $setup;
            cohort: [
                a_lock_is_handed_on_without_the_store,
                a_cohort_limit_bounds_overtaking,
                an_heir_has_his_own_words,
                an_heir_has_his_own_ways,
            ]
            contract: [
                a_free_key_is_taken_and_excludes,
                asking_again_gives_the_same,
                asking_again_gives_a_fresh_ttl,
                asking_again_shows_the_new_words,
                asking_twice_at_once_is_one_claim,
                one_who_may_not_queue_leaves_no_place,
                a_lease_ends_at_its_ttl,
                a_renewal_keeps_alive,
                a_renewal_creates_nothing,
                a_renewal_shortens_nothing,
                a_change_writes_ttl_and_words,
                renewals_are_answered_in_order,
                a_release_frees_once,
                a_release_by_a_stranger_does_nothing,
                a_late_release_harms_no_successor,
                owner_ids_are_compared_whole,
                tokens_rise,
                tokens_rise_after_a_block,
                a_rest_keeps_the_key_without_an_owner,
                inspect_shows_the_holder,
                keys_do_not_meet,
                words_come_back_as_they_were,
                wrong_calls_are_harmless,
                any_ttl_within_the_limits_will_do,
            ]
            faults: [
                fault_a1_acquire_reply_lost,
                fault_a2_acquire_request_lost,
                fault_a3_acquire_doubled,
                fault_a4_a_ghost_acquire,
                fault_a6_reply_after_the_deadline,
                fault_a7_dropped_in_flight,
                fault_a11_two_tasks_of_a_process,
                fault_b1_release_reply_lost,
                fault_b1_release_request_lost,
                fault_b3_release_doubled,
                fault_b5_release_dropped,
                fault_b6_release_overtakes_a_renewal,
                fault_b8_release_refused_for_a_while,
                fault_c1_a_renewal_lost,
                fault_c2_the_store_hangs,
                fault_c3_a_confirmation_after_the_deadline,
                fault_c4_a_renewal_finds_nothing,
                fault_c5_renewals_refused,
                fault_c12_many_cycles,
                fault_d3_a_waiter_survives_an_outage,
                fault_a_store_that_is_away,
                fault_an_extension_without_an_answer,
                fault_bad_weather,
            ]
            guard: [
                one_holder_at_a_time,
                one_holder_at_a_time_across_ends,
                a_guard_is_renewed,
                without_renewal_a_guard_ends_at_its_ttl,
                extend_sets_the_ttl,
                a_lost_guard_is_not_extended,
                a_holder_is_told_of_a_forced_release,
                max_hold_ends_a_guard,
                max_hold_ends_a_leaked_guard,
                a_guard_knows_itself,
                a_dropped_guard_gives_back,
                a_guard_may_outlive_its_runtime,
                a_task_that_dies_gives_back,
                everybody_hears_of_the_loss,
                a_lock_is_resumed_by_its_owner_id,
                run_ends_with_the_lock,
                fault_h1_a_paused_holder_is_refused,
            ]
            input: [
                values_outside_their_limits,
                settings_outside_their_limits,
                fault_d10_too_many_waiters,
                too_many_locks,
                very_many_locks,
                any_names_and_any_words,
            ]
            lifecycle: [
                shutdown_gives_all_back,
                shutdown_gives_places_back,
                an_observer_is_told,
                prefixes_keep_clients_apart,
                a_guard_outlives_its_client,
            ]
            line: [
                a_place_becomes_a_lease_by_push,
                a_place_becomes_a_lease_by_renewal,
                waiters_are_served_in_the_order_of_arrival,
                a_place_is_given_up_by_release,
                asking_again_keeps_the_place,
                the_end_of_a_holder_serves_the_next,
                a_grant_that_nobody_takes_passes_on,
                a_rest_is_waited_for_in_line,
                nobody_jumps_the_line,
                a_place_belongs_to_its_owner_id,
                a_long_line_is_served_to_its_end,
            ]
            modes: [
                shared_claims_hold_together_and_a_writer_alone,
                readers_pass_a_writer_that_gave_up,
                permits_are_not_overdrawn,
                a_large_want_is_not_starved,
                modes_do_not_mix,
            ]
            origins: [
                origins_distribmu_one_mutex_for_every_store,
                origins_distribmu_factory,
                origins_distribmu_lock,
                origins_distribmu_lock_wait,
                origins_distribmu_wait_key_release,
                origins_distribmu_unlock,
                origins_distribmu_do_with_must_done,
                origins_distribmu_do_with_max_retry,
                origins_distribmu_refresh_ttl_and_expire_time,
                origins_elocker_lock_and_unlock,
                origins_elocker_max_held_time,
                origins_elocker_context,
                origins_elocker_run_in_lock,
                origins_elocker_min_hold,
                origins_elocker_start_jitter,
                origins_elocker_prefix_callback_close,
                origins_godislock_waiting_by_push,
                origins_godislock_atomicity,
                origins_godislock_ttl_and_wait_timeout,
                origins_godislock_auto_refresh_and_release,
                origins_goredislock_global_client,
                origins_goredislock_expiry_and_renewal,
                origins_redislock_obtain,
                origins_redislock_key_token_metadata,
                origins_redislock_ttl_refresh_release,
                origins_redislock_options,
                origins_redislock_retry_strategies,
            ]
            peers: [
                rl07_a_deadline_before_the_end_of_patience,
                rl31_two_refreshes_in_a_row,
                rl11_a_refresh_of_a_lost_lock_does_not_wait,
                rl12_a_refresh_recovers,
                rl13_a_refresh_gives_up_with_the_error,
                rl16_a_foreign_value_survives,
                rl41_a_refresh_dropped_while_it_retries,
                rl43_success_asks_for_no_delay,
                ru05_taken_away_under_load,
                ru10_a_ttl_that_somebody_shortened,
                ru11_a_waiter_behind_a_renewed_holder,
                ru15_a_limit_shorter_than_the_ttl,
            ]
            waiting: [
                a_limit_of_zero_asks_once,
                the_longest_limit_is_for_ever,
                a_limit_ends_the_wait,
                fault_a9_a_limit_that_ends_with_the_grant,
                one_of_a_hundred_gets_it,
                strategies_decide_how_long_to_wait,
                wait_released_takes_nothing,
                fault_a8_canceled_locks_leave_nothing,
                fault_d6_a_waiter_that_gave_up_is_skipped,
                a_hundred_give_up_at_once,
                no_wake_up_is_lost,
                waiters_of_a_process_have_one_place,
                the_order_of_arrival_across_clients,
                a_shared_strategy_is_not_used_up,
                fault_d7_a_thousand_waiters_of_a_process,
            ]
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __suite {
    ($setup:path; $($group:ident: [$($case:ident),* $(,)?])*) => {
        $($(
            #[test]
            fn $case() {
                $crate::run(stringify!($case), $setup, $crate::cases::$group::$case);
            }
        )*)*
    };
}

/// Runs a case.
#[doc(hidden)]
pub fn run<S, F, B>(name: &str, setup: S, case: impl AsyncFnOnce(&Stage))
where
    S: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Setup<B>> + Send,
    B: Backend,
{
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stage = match Stage::open(setup).await {
            Ok(stage) => stage,
            Err(reason) => return absent(name, reason),
        };
        let outcome = AssertUnwindSafe(async {
            case(&stage).await;
            stage.check_left().await;
        });
        if let Err(panic) = outcome.catch_unwind().await {
            stage.clean_up().await;
            std::panic::resume_unwind(panic);
        }
    });
}

fn absent(name: &str, reason: &str) {
    let required = env::var("DISTLOCK_REQUIRE_BACKENDS").is_ok_and(|value| value == "1");
    assert!(!required, "{name}: the store is absent, and required: {reason}");
    eprintln!("{name}: skipped, the store is absent: {reason}");
}
