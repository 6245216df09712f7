"""Training steps that run again without their Python: what a step did, and the schedule made of it."""
