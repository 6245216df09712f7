"""Studies over several runs: accuracy over seeds, speed, comparison, demo."""
