"""Run directories, checkpoints, locks, errors and progress."""
