"""What a run does beside training: checkpoints, the guard of losses, records and trackers."""
