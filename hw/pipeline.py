"""Lengths of the RTL's pipelines and queues: rendered into ``fabric_pkg``, and what the cycle model counts with.

Standard library only, so that it runs on the board.
"""

QUEUE_SLOTS = 4
CHECK_CYCLES = 10
PERMIT_CYCLES = 1
STEP_CYCLES = 2
ARRAY_CYCLES = 4
HASH_CYCLES = 12
VALUE_CYCLES = 14
EPILOGUE_CYCLES = 18
WORD_CYCLES = 3

#: what each is, for the rendered package
LENGTHS = {
    "QUEUE_SLOTS": "commands between loader and sequencer, a power of two",
    "CHECK_CYCLES": "from a header's last words to the verdict on it",
    "PERMIT_CYCLES": "from the word that a tile may end, for the drain or its operands, to the decision that it does",
    "STEP_CYCLES": "from the sequencer's decision on a step to the step's operands",
    "ARRAY_CYCLES": "from a tile's last operands to its sums",
    "HASH_CYCLES": "from a random index to its hash",
    "VALUE_CYCLES": "from an output channel's sums to their values x and w",
    "EPILOGUE_CYCLES": "from an output channel's sums to its codes",
    "WORD_CYCLES": "from the decision on a beat of integers to the beat",
}
