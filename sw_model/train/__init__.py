"""Training: recipe, schedules, loop, run folder, resume."""
