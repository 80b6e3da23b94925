"""Every fault that the platform promises to survive, and the tests that hold the promise.

A fault that touches the store is held on a folder and on a bucket of an S3 server process behind the fault proxy.
`test_soak.py` mixes the ones that can happen at any moment for half an hour.

 1  actor killed in a shard
    tests/contracts/test_executors.py::test_an_actor_killed_in_the_middle_of_a_shard_changes_nothing_but_the_attempt
    tests/cluster/on_ray/test_losses.py::test_workers_killed_at_random_moments_leave_an_identical_store
    tests/faults/test_extract.py::test_an_actor_killed_in_the_middle_changes_no_file
    tests/faults/test_workers.py::test_workers_that_die_in_a_shard_are_replaced_and_no_row_changes
 2  node dies
    tests/cluster/on_ray/test_losses.py::test_a_machine_that_dies_changes_nothing
 3  driver killed
    tests/faults/test_kills.py::test_killed_after_the_marker_of_its_fifth_shard_a_rerun_does_the_missing_ones
    tests/faults/test_extract.py::test_a_driver_killed_at_random_moments_leaves_only_unfinished_shards
    tests/cluster/on_ray/test_losses.py::test_drivers_killed_with_their_actors_at_random_moments_leave_an_identical_store
 4  driver killed between the last marker and publishing
    tests/faults/test_kills.py::test_killed_between_the_last_marker_and_publishing_a_rerun_publishes_and_computes_nothing
 5  killed between part and marker
    tests/faults/test_kills.py::test_killed_between_part_and_marker_a_rerun_adopts_the_part_and_doubles_no_row
 6  preemption: SIGTERM and 3 seconds
    tests/faults/test_kills.py::test_sigterm_writes_the_state_in_time_and_the_same_command_goes_on
    tests/faults/test_kills.py::test_sigterm_does_not_wait_for_a_long_shard_on_ray
 7  head of the cluster lost
    tests/cluster/on_ray/test_losses.py::test_a_head_that_dies_ends_the_driver_with_code_three_and_a_sentence_and_a_rerun_goes_on
 8  store answers 500, 503, SlowDown in a burst
    tests/faults/test_stores.py::test_a_burst_of_busy_answers_in_the_middle_changes_no_row_and_is_counted
    tests/cluster/stores/test_s3.py::test_every_operation_waits_out_a_burst
    tests/faults/test_extract.py::test_a_bucket_behind_faults_holds_the_same_files_as_a_folder
 9  store down for ever
    tests/faults/test_stores.py::test_a_store_that_goes_away_for_ever_ends_the_command_within_its_budget_with_code_3
    tests/cluster/stores/test_s3.py::test_a_store_down_for_ever_ends_within_its_budget_and_says_so
10  store hangs
    tests/faults/test_stores.py::test_hangs_resets_torn_uploads_and_lost_answers_everywhere_change_no_row
    tests/cluster/stores/test_s3.py::test_a_hanging_request_is_given_up_and_sent_again
11  write done, answer lost
    tests/faults/test_stores.py::test_hangs_resets_torn_uploads_and_lost_answers_everywhere_change_no_row
    tests/cluster/stores/test_s3.py::test_after_a_lost_answer_create_says_false_and_the_object_is_ours
12  download cut
    tests/faults/test_stores.py::test_an_image_that_comes_cut_or_late_is_never_a_short_image
    tests/cluster/stores/test_s3.py::test_a_download_cut_in_the_middle_is_fetched_again_and_never_short
13  torn upload
    tests/faults/test_kills.py::test_an_error_in_the_middle_of_a_shard_leaves_none_of_it_in_the_store
    tests/contracts/test_stores.py::test_killing_a_writer_at_any_moment_leaves_only_whole_objects
    tests/cluster/stores/test_s3.py::test_a_torn_upload_leaves_no_object_and_is_sent_again
14  wrong credentials
    tests/cluster/stores/test_s3.py::test_refused_credentials_are_one_sentence_after_one_request
    tests/cluster/stores/test_s3.py::test_a_wrong_secret_is_denied_by_a_service_that_checks_it
15  no bucket, no permission to write
    tests/cluster/stores/test_s3.py::test_a_missing_bucket_is_one_sentence_whatever_is_asked
    tests/cluster/cli/test_cli.py::test_an_unwritable_store_is_code_3_and_one_sentence
16  disk full
    tests/faults/test_stores.py::test_a_part_that_does_not_fit_fails_its_shard_with_path_and_bytes_and_the_others_go_on
    tests/faults/test_stores.py::test_a_service_that_is_full_for_one_part_fails_its_shard_alone
    tests/cluster/stores/test_posix.py::test_a_full_disk_is_store_full_and_the_objects_before_stay
17  object store of Ray full
    tests/cluster/on_ray/test_executor.py::test_a_full_object_store_changes_nothing
18  host out of memory
    tests/cluster/on_ray/test_losses.py::test_memory_that_runs_out_is_named_and_the_rest_of_the_zoo_is_safe
    tests/cluster/test_scheduler.py::test_a_slot_that_ran_out_of_memory_gets_fewer_workers
19  device out of memory
    tests/faults/test_models.py::test_out_of_memory_halves_the_batch_once_says_so_and_gives_the_same_rows
    tests/faults/test_models.py::test_a_device_that_holds_not_one_image_fails_the_shard_with_advice
20  image bytes corrupted after they were indexed
    tests/jobs/extract/test_work.py::test_changed_and_vanished_images_stop_or_are_set_aside
    tests/cluster/test_image_reader.py::test_bytes_that_changed_are_a_checksum_problem_and_the_others_are_untouched
21  truncated image
    tests/jobs/index_images/test_index.py::test_bad_files_are_rows_of_bad_inputs_with_reason_and_detail
    tests/miclip_core/test_images.py::test_a_cut_file_of_every_format_is_truncated_and_never_half_a_picture
22  not an image, empty, of an exotic mode
    tests/jobs/index_images/test_index.py::test_bad_files_are_rows_of_bad_inputs_with_reason_and_detail
    tests/miclip_core/test_images.py::test_cmyk_inks_become_rgb
    tests/miclip_core/test_images.py::test_of_an_animation_the_first_frame_counts
23  huge image
    tests/miclip_core/test_images.py::test_a_decompression_bomb_is_too_large_by_its_header_and_costs_no_memory
    tests/miclip_core/test_images.py::test_the_limit_counts_pixels_where_pillow_would_only_warn
24  activations that are NaN, infinite or beyond fp16
    tests/jobs/extract/test_work.py::test_nonfinite_activations_stop_or_are_set_aside_by_image
    tests/jobs/extract/test_work.py::test_values_beyond_fp16_stop_with_the_site_and_the_way_out
25  a model fails to load
    tests/faults/test_models.py::test_a_model_that_cannot_be_loaded_fails_alone_and_the_others_are_published
    tests/faults/test_models.py::test_a_folder_that_is_gone_is_refused_before_any_work
    tests/faults/test_models.py::test_weights_swapped_between_inspection_and_extraction_are_noticed
26  malicious checkpoint
    tests/faults/test_models.py::test_a_checkpoint_that_would_run_code_is_refused_and_runs_none
27  poison shard
    tests/contracts/test_executors.py::test_a_poison_shard_is_set_aside_after_three_attempts_and_its_neighbours_are_not_blamed
    tests/faults/test_workers.py::test_a_shard_that_ends_every_worker_is_set_aside_and_named_and_the_others_are_kept
28  one shard executed twice at once
    tests/faults/test_kills.py::test_two_workers_with_the_same_shard_at_the_same_moment_leave_one_part_and_one_marker
    tests/cluster/on_ray/test_executor.py::test_two_actors_with_the_same_shard_at_once_leave_one_part_and_one_marker
29  one spec run twice at once
    tests/faults/test_kills.py::test_two_drivers_at_once_make_one_table_and_both_succeed
    tests/faults/test_extract.py::test_two_drivers_at_once_make_one_table
30  two specs, one store
    tests/faults/test_sameness.py::test_two_specs_at_once_in_one_store_share_no_key_and_disturb_nothing
31  clock wrong
    tests/faults/test_sameness.py::test_clocks_that_are_wrong_and_jump_change_no_byte
32  mistakes in a spec
    tests/faults/test_refusals.py::test_a_mistake_in_a_spec_is_code_2_with_its_line_and_schedules_nothing
    tests/cluster/test_spec_file.py::test_a_mistake_is_named_with_its_place_what_was_found_and_what_was_expected
33  names that leave the store
    tests/faults/test_refusals.py::test_a_name_that_would_leave_the_store_is_refused_wherever_a_spec_may_hold_one
    tests/faults/test_refusals.py::test_an_artifact_or_image_named_like_a_path_is_refused_before_any_write
    tests/faults/test_refusals.py::test_a_store_whose_folder_was_turned_into_a_link_outwards_is_refused
    tests/jobs/index_images/test_sources.py::test_a_member_whose_name_leaves_its_folder_is_refused_and_nothing_is_written
34  secrets
    tests/faults/test_refusals.py::test_a_secret_of_the_environment_is_in_no_object_no_log_and_no_message
    tests/faults/test_refusals.py::test_a_secret_in_a_spec_is_refused_unrepeated_and_kept_nowhere
    tests/faults/test_refusals.py::test_a_secret_of_the_environment_is_in_no_log_of_ray_either
35  part damaged or deleted after it was published
    tests/faults/test_sameness.py::test_a_flipped_byte_is_named_by_verify_and_never_gives_fewer_rows
    tests/faults/test_sameness.py::test_a_deleted_part_is_named_by_verify_and_every_reader_refuses
36  newer code
    tests/faults/test_sameness.py::test_a_new_version_of_a_method_makes_a_new_table_and_leaves_the_old_one
37  order, number of workers
    tests/faults/test_sameness.py::test_order_and_number_of_workers_change_no_byte
    tests/faults/test_sameness.py::test_extraction_in_another_order_by_several_workers_changes_no_byte
    tests/contracts/test_executors.py::test_one_two_and_three_workers_leave_identical_stores
38  slow worker
    tests/cluster/test_scheduler.py::test_a_queue_behind_a_straggler_moves_on_before_the_end
39  resources that are not there
    tests/faults/test_refusals.py::test_gpus_that_are_not_there_are_refused_before_models_and_images_are_looked_at
    tests/faults/test_refusals.py::test_gpus_that_the_cluster_lacks_are_code_2_with_both_numbers_and_nothing_is_computed
    tests/cluster/on_ray/test_executor.py::test_what_no_machine_can_hold_is_refused_with_field_and_both_numbers
40  types and values in other engines
    tests/cluster/test_engines.py::test_every_engine_reads_every_table_value_for_value
    tests/cluster/test_engines.py::test_every_engine_finds_the_declared_types
    tests/cluster/test_engines.py::test_spark_reads_every_table_value_for_value
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISED = {*range(1, 7), *range(8, 14), *range(16, 38), 39, 40}


def parse_matrix() -> dict[int, list[str]]:
    """Fault -> the tests that hold it."""
    matrix: dict[int, list[str]] = {}
    for line in (__doc__ or "").splitlines():
        if fault := re.match(r"^ ?(\d+)  \S", line):
            matrix[int(fault[1])] = []
        elif test := re.match(r"^    (tests/\S+::test_\w+)$", line):
            matrix[max(matrix)].append(test[1])
    return matrix


MATRIX = parse_matrix()


def test_every_promised_fault_has_a_test() -> None:
    assert set(MATRIX) >= PROMISED
    assert all(MATRIX.values())
    assert sum(map(len, MATRIX.values())) == (__doc__ or "").count("::test_")


@pytest.mark.parametrize("fault", MATRIX)
def test_the_tests_that_hold_a_fault_exist(fault: int) -> None:
    for name in MATRIX[fault]:
        path, _, function = name.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
