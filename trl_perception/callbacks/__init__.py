"""What happens beside training: checkpoints, the guard against numbers that are not finite, reporting, warnings."""
