"""Memories, the roofline and where the time goes: against the cost model, by hand on single layers, and as a command."""

import argparse
import json
from dataclasses import replace

import pytest

from hw.cost_commands import register
from hw.design import load_design
from hw.explore import Request, evaluate, explore, mean_work
from hw.fabric_cost import MEMORY, PL_MEMORY, FabricMachine, bandwidth
from hw.layers import Bits, resnet_cifar

DESIGN = load_design("zc706")
BITS = Bits(4, 3, 6)


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    arguments = parser.parse_args(words)
    return int(arguments.run(arguments))


# -- memories -------------------------------------------------------------------------------------------------------


def test_both_memories_together_have_the_sum_of_their_bandwidths() -> None:
    part = DESIGN.part
    assert bandwidth(part) == MEMORY[part] == FabricMachine(DESIGN).memory
    assert bandwidth(part, "ps+pl") == MEMORY[part] + PL_MEMORY[part]


@pytest.mark.parametrize(
    ("part", "memory", "message"),
    [(DESIGN.part, "hbm", "use one of ps, ps.pl"), (load_design("pynq-z2").part, "ps+pl", "has no DDR beside")],
)
def test_memories_that_do_not_exist_are_refused(part: str, memory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bandwidth(part, memory)


def test_a_second_memory_helps_fabrics_that_wait_for_the_first() -> None:
    """Two fabrics' six streams ask for more than the processor's DDR gives; one fabric's three hardly do."""
    work = tuple((1.0, shape, BITS) for shape in resnet_cifar(8))
    slow, fast = (evaluate(DESIGN, 2, work, 128, memory) for memory in ("ps", "ps+pl"))
    assert fast.cycles == slow.cycles
    assert fast.seconds < slow.seconds
    assert fast.seconds == pytest.approx(fast.cycles / DESIGN.clock_mhz / 1e6)  # nothing waits any more


def test_points_of_one_memory_do_not_count_for_another() -> None:
    request = Request(DESIGN.part, "resnet8", ())
    assert request.key() != replace(request, memory="ps+pl").key()
    from hw.computational_cost import static

    elsewhere = Request(load_design("pynq-z2").part, "resnet8", mean_work(resnet_cifar(8), static(BITS, 1)))
    with pytest.raises(ValueError, match="has no DDR beside"):
        explore(replace(elsewhere, memory="ps+pl"))


def test_the_command_says_that_the_second_memory_is_unverified(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("cost", "--model", "resnet8", "--bits", "4,3,6", "--machine", "zc706", "--memory", "ps+pl")
    assert command(*options) == 0
    assert "unverified" in capsys.readouterr().out
    assert command(*options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory"] == "ps+pl"
