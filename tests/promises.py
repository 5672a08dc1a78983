"""The promises of docs/reliability.md, and the tests of each."""

PROMISES = {
    "Two DDP processes give the losses, gradient norms, rewards and metrics of one at the same global batch (1e-4), for every trainer, on all kinds of prompts, with an evaluation whose rows do not divide evenly.": [
        "tests/processes/test_equality.py::test_two_processes_give_what_one_gives",
    ],
    "So do four processes, for GRPO, Video-KTR, RAL and attention distillation (*slow*).": [
        "tests/processes/test_equality.py::test_four_processes_give_what_one_gives",
    ],
    "So do two processes that share parameters by FSDP2 or ZeRO-3, or gradients by ZeRO-2, with different prompts: video and text, a group with equal rewards, a sample that was left out (*slow*).": [
        "tests/processes/test_equality.py::test_sharded_processes_give_what_one_gives",
    ],
    "The same run does not finish properly without the scheduling of collectives (*slow*).": [
        "tests/processes/test_equality.py::test_scheduled_collectives_prevent_a_hang",
    ],
    "Every process runs the same series of forwards; without sharding there is no cost.": [
        "tests/trainers/test_distributed.py::test_fewer_forwards_are_filled_up_with_empty_ones",
        "tests/trainers/test_distributed.py::test_without_sharding_nothing_is_communicated",
        "tests/modeling/test_tower.py::test_every_forward_runs_the_tower_once_at_the_same_numbers",
    ],
    "Settings that would hang are refused before sampling (*slow*).": [
        "tests/processes/test_refusals.py::test_what_would_hang_is_refused",
    ],
    "A hang in these tests is a failure that shows where each process was.": [
        "tests/processes/test_watchdog.py::test_a_process_that_waits_is_found_by_the_clock",
        "tests/processes/test_watchdog.py::test_a_process_that_waits_is_found_by_the_others",
    ],
    "A run under FSDP2, ZeRO-2 or ZeRO-3 resumes from its checkpoint (tested with RAL); an error in one process stops all (tested with GRPO) (*slow*).": [
        "tests/processes/test_equality.py::test_a_sharded_run_resumes_from_its_checkpoint",
        "tests/processes/test_equality.py::test_a_fault_of_one_process_stops_all_that_share_a_model",
    ],
    "Dynamic sampling: processes that lack different numbers of groups run the same rounds (*slow*).": [
        "tests/trainers/test_dynamic_sampling.py::test_two_processes_sample_the_same_rounds",
    ],
    "A run killed with SIGKILL and resumed logs the same losses, rewards and gradient norms as an uninterrupted one, with the same weights and records: every trainer, also in the middle of a rollout (two trainers fast, the others *slow*).": [
        "tests/callbacks/checkpoints/test_killed_runs.py::test_a_killed_run_resumes_exactly",
    ],
    "The same holds for adapters, frozen towers, ends of epochs, evaluation, persistent workers, gradient checkpointing, streamed rows (*slow*), and for PGPO and RAL on two processes (*slow*).": [
        "tests/callbacks/checkpoints/test_killed_runs.py::test_other_kinds_of_runs_resume_exactly",
        "tests/callbacks/checkpoints/test_killed_runs.py::test_two_processes_resume_exactly",
    ],
    "A checkpoint that was being written when the process died is never selected, also not by transformers' search; its remains are deleted.": [
        "tests/callbacks/checkpoints/test_killed_runs.py::test_a_checkpoint_in_the_making_never_counts",
        "tests/callbacks/checkpoints/test_folder.py::test_a_complete_one_that_was_moved_away_comes_back",
    ],
    "`resume_from_checkpoint: true` uses the last complete checkpoint and logs why it skips others; without one it is an error.": [
        "tests/callbacks/checkpoints/test_folder.py::test_the_last_complete_checkpoint_is_taken",
        "tests/callbacks/checkpoints/test_folder.py::test_a_recipe_asks_for_the_last_one",
        "tests/callbacks/checkpoints/test_folder.py::test_a_missing_checkpoint_is_reported",
    ],
    "A named checkpoint is refused if it is truncated, incomplete, changed in one bit (of a file up to 64 MiB), weights only, or of another format.": [
        "tests/callbacks/checkpoints/test_folder.py::test_one_bit_of_any_file_is_noticed",
        "tests/callbacks/checkpoints/test_folder.py::test_a_damaged_checkpoint_that_is_named_is_refused",
        "tests/callbacks/checkpoints/test_folder.py::test_weights_alone_are_refused",
        "tests/callbacks/checkpoints/test_run_facts.py::test_another_format_is_refused",
    ],
    "`save_total_limit` holds, the best checkpoint stays, and none is deleted before the new one is complete.": [
        "tests/callbacks/checkpoints/test_saving.py::test_the_limit_is_kept_and_the_best_stays",
    ],
    "A full disk is one error; the previous checkpoint stays valid and the partial one is deleted (a real full disk: *slow*).": [
        "tests/callbacks/checkpoints/test_disk.py::test_a_full_disk_is_one_clear_error",
        "tests/callbacks/checkpoints/test_disk.py::test_a_disk_that_is_really_full",
    ],
    "A run with fewer or other rows, other batches or another seed than the checkpoint is refused; `ignore_data_skip` resumes anyway.": [
        "tests/callbacks/checkpoints/test_run_facts.py::test_a_run_that_does_not_fit_is_refused",
        "tests/callbacks/checkpoints/test_run_facts.py::test_a_run_resumes_with_other_rows_deliberately",
    ],
    "A loss that is not finite stops the run and names step, samples and term; a gradient that is not finite names its parameters; neither changes weights or optimizer.": [
        "tests/callbacks/nonfinite/test_nonfinite.py::test_a_loss_that_is_not_finite_stops_and_names_step_samples_and_term",
        "tests/callbacks/nonfinite/test_nonfinite.py::test_a_penalty_is_named_apart_from_the_policy_loss",
        "tests/callbacks/nonfinite/test_nonfinite.py::test_a_gradient_that_is_not_finite_names_its_parameters_before_anything_changes",
    ],
    "The dump replays to the same non-finite value, and a finite micro-batch to the same loss and gradient.": [
        "tests/callbacks/nonfinite/test_nonfinite.py::test_a_dump_replays_to_the_same_value",
        "tests/callbacks/nonfinite/test_nonfinite.py::test_a_healthy_micro_batch_replays_to_the_same_loss_and_gradient",
        "tests/callbacks/nonfinite/test_nonfinite.py::test_adapters_are_dumped_and_replayed",
    ],
    "A step skipped by `on_nonfinite: skip` changes neither weights nor optimizer; the number in a row is limited.": [
        "tests/callbacks/nonfinite/test_nonfinite.py::test_a_skipped_step_changes_neither_weights_nor_optimizer",
        "tests/callbacks/nonfinite/test_nonfinite.py::test_skipping_is_bounded",
    ],
    "An error in one process stops all processes, or all skip the step (*slow*).": [
        "tests/callbacks/nonfinite/test_nonfinite_processes.py::test_a_loss_on_one_process_stops_both",
        "tests/callbacks/nonfinite/test_nonfinite_processes.py::test_a_loss_on_one_process_is_left_out_by_both",
        "tests/callbacks/nonfinite/test_nonfinite_processes.py::test_a_reward_that_raises_on_one_process_stops_both",
        "tests/callbacks/nonfinite/test_nonfinite_processes.py::test_a_reward_that_hangs_on_one_process_stops_both",
        "tests/callbacks/nonfinite/test_nonfinite_processes.py::test_a_reward_that_is_nan_on_one_process_stops_both_or_is_left_out",
    ],
    "The error of a reward that raises names the reward and the row and is chained to its exception.": [
        "tests/rewards/test_checked.py::test_what_a_reward_raises_is_chained_and_names_reward_and_row",
        "tests/callbacks/nonfinite/test_reward_faults.py::test_a_reward_that_raises_stops_and_names_reward_and_row",
    ],
    "A reward that hangs is stopped at `reward_timeout`.": [
        "tests/rewards/test_checked.py::test_a_reward_that_hangs_is_left_behind",
        "tests/rewards/test_checked.py::test_an_async_reward_that_hangs_is_cancelled",
        "tests/callbacks/nonfinite/test_reward_faults.py::test_a_reward_that_hangs_stops_in_time",
    ],
    "A reward that is not finite stops the run; if it is skipped, its group does not change the loss of the others.": [
        "tests/callbacks/nonfinite/test_reward_faults.py::test_a_reward_that_is_not_finite_stops",
        "tests/callbacks/nonfinite/test_reward_faults.py::test_the_group_of_a_skipped_reward_leaves_the_loss_of_the_others_as_it_is",
    ],
    "Equal rewards, empty completions, completions of one token, all completions truncated, all samples left out: loss and gradient are finite, and zero where they must be, for every trainer (unpacked path *slow*).": [
        "tests/callbacks/nonfinite/test_degenerate_rollouts.py::test_every_case_is_finite",
        "tests/callbacks/nonfinite/test_degenerate_rollouts.py::test_every_completion_truncated_and_masked_teaches_nothing",
        "tests/callbacks/nonfinite/test_degenerate_rollouts.py::test_a_batch_whose_media_are_all_bad_teaches_nothing",
    ],
    "Groups of two completions can be trained.": [
        "tests/callbacks/nonfinite/test_degenerate_rollouts.py::test_groups_of_two",
    ],
    "LoRA, DoRA and rsLoRA on language, tower, merger or all layers: packed and unpacked paths give the same losses and gradients, and only adapter weights change, for every trainer (partly *slow*).": [
        "tests/modeling/test_adapters.py::test_fast_paths_give_an_adapter_the_same_gradients",
    ],
    "The reference is the base model with the adapter disabled, on every path.": [
        "tests/modeling/test_adapters.py::test_the_reference_is_the_base_on_every_path",
    ],
    "Frozen parts get no adapter, also after reference passes; features are reused only if the tower has no adapter.": [
        "tests/modeling/test_adapters.py::test_an_adapter_stays_out_of_frozen_parts",
        "tests/modeling/test_adapters.py::test_a_model_that_came_with_an_adapter_in_a_frozen_part_is_refused",
        "tests/modeling/test_adapters.py::test_features_are_kept_only_of_a_tower_without_adapter",
    ],
    "Credit is computed without dropout.": [
        "tests/modeling/test_adapters.py::test_scoring_forwards_have_no_dropout",
    ],
    "Both kinds of gradient checkpointing give a vision adapter the same update (*slow*).": [
        "tests/modeling/test_adapters.py::test_checkpointing_moves_an_adapter_alike",
    ],
    "An adapter is saved as safetensors, resumes, loads in `ask` and `evaluate`, and merges to the trained policy.": [
        "tests/modeling/test_adapters.py::test_an_adapter_resumes_where_it_was",
        "tests/modeling/test_adapters.py::test_an_adapters_folder_loads_as_the_policy_that_was_trained",
    ],
    "Every trainer trains an adapter on a base in 4 and in 8 bit (partly *slow*); a teacher works in 4 and 8 bit; such a run resumes in its dtype (*slow*).": [
        "tests/modeling/test_quantization.py::test_an_adapter_trains_on_a_quantised_base",
        "tests/modeling/test_quantization.py::test_a_teacher_is_quantised_and_still_teaches",
        "tests/modeling/test_quantization.py::test_a_quantised_run_resumes_in_its_type",
    ],
    "A recipe configures quantisation, the run prints what is quantised, and the adapter merges into an unquantised model.": [
        "tests/modeling/test_quantization.py::test_a_recipe_reaches_the_model_and_says_what_is_quantised",
    ],
    "Adapters and quantisations that are not supported are refused with a reason.": [
        "tests/modeling/test_adapters.py::test_what_does_not_go_with_media_is_refused",
        "tests/modeling/test_quantization.py::test_quantised_settings_are_refused_with_a_reason",
    ],
    "Each of some 170 broken or odd inputs is decoded correctly or refused with one error, within its limits of time and memory, and never replaced.": [
        "tests/media/test_corpus.py::test_each_input_is_decoded_right_or_refused",
        "tests/media/test_corpus.py::test_memory_of_the_reading_process_is_bounded",
    ],
    "Settings of a recipe limit pixels, frames and seconds per medium.": [
        "tests/media/test_limits.py::test_prompts_check_their_media_against_the_limits",
        "tests/media/test_limits.py::test_configs_carry_the_limits",
    ],
    "A run reports the prompts that an epoch leaves out because rollouts are complete, and refuses fewer rows than a rollout needs.": [
        "tests/trainers/test_bad_input.py::test_what_an_epoch_leaves_out_is_reported",
        "tests/trainers/test_bad_input.py::test_fewer_rows_than_a_rollout_takes_are_refused",
    ],
    "A sample that is left out does not change the loss of the others.": [
        "tests/trainers/test_bad_input.py::test_a_skipped_sample_leaves_the_loss_of_the_others_as_it_is",
    ],
    "A prompt that is too long is refused or left out, never truncated.": [
        "tests/trainers/test_bad_input.py::test_a_long_prompt_is_never_cut",
    ],
    "Training, evaluation, `ask` and `from_pretrained` run code that comes with a model only on request.": [
        "tests/test_security.py::test_code_that_a_model_brings_is_not_run",
        "tests/test_security.py::test_code_beside_a_known_model_is_not_run",
        "tests/test_security.py::test_it_is_off_until_it_is_asked_for",
    ],
    "A chat template cannot access Python.": [
        "tests/test_security.py::test_a_chat_template_cannot_reach_python",
    ],
    "A recipe creates no objects, and the name of a reward is not evaluated as an expression.": [
        "tests/test_security.py::test_a_recipe_makes_no_objects",
        "tests/test_security.py::test_the_name_of_a_reward_is_not_an_expression",
    ],
    "A dataset is data: no scripts, no pickles.": [
        "tests/test_security.py::test_a_data_set_is_data",
        "tests/test_security.py::test_a_script_in_the_folder_of_a_data_set_is_not_run",
    ],
    "Weights are saved as safetensors; only the states that transformers itself saves (optimizer, schedule, random state, settings) are pickled.": [
        "tests/test_security.py::test_weights_are_safetensors_and_nothing_else_is_pickled",
    ],
    "A pickle among weights or in a checkpoint is refused, not loaded.": [
        "tests/test_security.py::test_pickled_weights_are_not_unpickled",
        "tests/test_security.py::test_a_pickle_planted_in_a_checkpoint_is_not_run",
        "tests/test_security.py::test_the_settings_in_a_checkpoint_are_not_unpickled",
    ],
    "Text of a model is escaped in reports and trackers: a script tag in a completion has no effect.": [
        "tests/reports/test_page.py::test_nothing_that_was_recorded_is_markup",
        "tests/callbacks/reporting/test_trackers.py::test_a_page_has_every_token_once_and_escaped",
    ],
    "A Hub token is in no output, file, card or recipe, even if it is on the command line.": [
        "tests/test_hub.py::test_the_token_is_nowhere",
        "tests/test_provenance.py::test_tokens_are_in_neither_recipe_nor_command",
    ],
}
