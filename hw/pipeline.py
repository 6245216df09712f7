"""Lengths of the RTL's pipelines and queues: rendered into ``fabric_pkg``, and what the cycle model counts with.

Standard library only, so that it runs on the board.
"""

QUEUE_SLOTS = 4
STEP_CYCLES = 2
ARRAY_CYCLES = 4
MIX_CYCLES = 4

#: what each is, for the rendered package
LENGTHS = {
    "QUEUE_SLOTS": "commands between loader and sequencer, a power of two",
    "STEP_CYCLES": "from the sequencer's decision on a step to the step's operands",
    "ARRAY_CYCLES": "from a tile's last operands to its sums",
    "MIX_CYCLES": "from a random index to its random word",
}
