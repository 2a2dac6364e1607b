//! **millpond** is a pull-through caching mirror for container registries.
//!
//! # The journey of a request
//!
//! > listen → route → access → pull → cache → upstream → fill → reply
//!
//! `listen` accepts a connection and hands each request to `handle`, which reads like this list: `route` finds what is asked
//! for, `access` who asks, `pull` decides, `cache` says whether it is held, `upstream` is asked when it is not, `fill` turns
//! one upstream body into one verified file that everybody reads while it grows, and `reply` makes the response.
//!
//! # What always holds
//!
//! Each line names the tests that fail when it does not; they stand in `tests/it`.
//!
//! 1. A file under `blobs/` hashes to its name, also after kill -9, a full disk or a power cut.
//!    `it::disk::kills_at_random_moments_leave_whole_blobs_and_a_mirror_that_starts`,
//!    `it::disk::a_kill_before_any_step_leaves_a_sound_folder_and_a_mirror_that_starts`,
//!    `it::disk::a_power_cut_at_any_moment_leaves_whole_blobs_and_a_mirror_that_starts`,
//!    `it::disk::a_large_blob_that_changes_while_running_is_fetched_again`,
//!    `it::disk::a_rotten_blob_is_found_before_anybody_asks_for_it_and_fetched_again`
//! 2. No client receives the last bytes of a blob that was not verified; a failed body ends as a broken connection, never as
//!    a clean end. `it::faults::a_wrong_byte_anywhere_is_never_handed_over_as_whole`,
//!    `it::flight::the_last_bytes_wait_until_the_whole_is_verified`
//! 3. One fetch a digest at a time; joiners stream from the growing file at once; a dead leader strands nobody.
//!    `it::flight::many_clients_of_a_cold_blob_are_one_fetch`, `it::flight::a_client_that_comes_half_way_has_the_half_at_once`,
//!    `it::flight::a_leader_whose_fetch_dies_strands_nobody`
//! 4. No client slows or cancels a fill that others, or the cache, want; no disk fault breaks a client the upstream could
//!    serve. `it::flight::a_client_that_reads_nothing_slows_only_itself`,
//!    `it::flight::what_everybody_left_is_fetched_to_its_end_and_kept`,
//!    `it::disk::a_disk_that_fills_up_in_the_middle_breaks_no_client`, `it::disk::a_disk_that_refuses_any_call_breaks_no_client`,
//!    `it::disk::a_disk_that_hangs_in_any_call_breaks_no_client`
//! 5. What is held is served with the upstream down, the index gone, the disk full, the clock wrong.
//!    `it::stale::an_outage_serves_stale_and_its_end_renews`, `it::disk::a_mirror_starts_and_serves_on_a_full_disk`,
//!    `it::disk::a_disk_that_turns_read_only_breaks_no_client`, `it::disk::a_clock_that_jumps_expires_nothing_and_breaks_nothing`
//! 6. Losing the index loses no blob, no tag and no image: only time.
//!    `it::disk::whatever_became_of_the_index_the_mirror_serves_at_once`,
//!    `it::disk::a_tag_whose_manifest_was_evicted_goes_and_one_that_can_be_served_stays_whatever_its_age`
//! 7. Only configured upstreams are contacted; credentials reach exactly the host they are for; private content only those
//!    who may; what the operator denies nobody. `it::pull::what_is_not_configured_is_not_contacted`,
//!    `it::faults::a_password_goes_to_the_token_service_and_nowhere_else`,
//!    `it::faults::no_private_address_is_gone_to_however_it_is_spelled`,
//!    `it::upstream::a_redirect_through_a_proxy_leads_to_no_address_of_the_private_network`,
//!    `it::upstream::it_is_shown_to_the_endpoints_and_not_where_they_redirect_to`,
//!    `it::upstream::what_is_denied_is_refused_at_once_also_when_it_is_held`,
//!    `it::private::what_is_private_does_not_exist_for_strangers_before_it_is_held_and_after`,
//!    `it::private::a_name_in_a_manifest_gives_nothing_private`,
//!    `it::private::a_registry_gets_nothing_of_another_by_claiming_it`,
//!    `it::upstream::a_repository_that_one_of_them_sees_is_found_and_remembered_and_stays_private`,
//!    `it::leak::what_is_secret_is_in_no_log_no_metric_and_no_answer`
//! 8. Every wait, queue, body, header and retry has a named limit with a reason.
//!    `it::faults::an_upstream_that_takes_connections_and_says_nothing_is_given_up`,
//!    `it::disk::ten_times_the_limit_goes_through_and_the_limit_holds_all_the_time`, `it::crowd::are_given_back_in_time`,
//!    `it::drain::the_deadline_cuts_what_does_not_end_and_nothing_half_done_is_left`
//! 9. A hit makes no upstream request, a cold image makes the fewest: one manifest GET a digest, one blob GET a digest; where
//!    that is slow, parts of it over several connections, each byte once. `it::faults::several_connections_bring_what_one_would_bring_slowly`,
//!    `it::pull::a_cold_image_is_one_get_a_digest_and_the_second_pull_is_nothing`,
//!    `it::upstream::a_thousand_pulls_of_a_cached_tag_in_ten_minutes_cost_no_pull_and_ten_heads`
//! 10. Dependencies point one way, and only one file says `sled`, `moka` or `figment`.
//!     `it::tidy::dependencies_point_one_way`, `it::tidy::only_those_say_it_who_may`

pub mod config;

pub mod serve;

pub mod listen;

pub mod handle;

pub mod route;

pub mod access;

pub mod pull;

pub mod cache;

pub mod upstream;

pub mod fill;

pub mod reply;

pub mod admin;

pub mod doctor;

pub mod observe;

pub mod log;

pub mod oci;

pub mod mapping;

pub mod version;
