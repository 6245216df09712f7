"""cocotb bench of control_bridge: random bursts from an AXI master against a memory behind AXI4-Lite."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiBurstType, AxiBus, AxiLiteBus, AxiLiteRam, AxiMaster

BYTES = 512


def _pauses(rng: random.Random) -> Iterator[bool]:
    while True:
        yield rng.random() < 0.4


async def _connected(dut: Any, rng: random.Random) -> tuple[AxiMaster, AxiLiteRam]:
    Clock(dut.clk_i, 10, unit="ns").start()
    for name in ("s_axi", "m_axi"):
        logging.getLogger(f"cocotb.control_bridge.{name}").setLevel(logging.WARNING)
    master = AxiMaster(AxiBus.from_prefix(dut, "s_axi"), dut.clk_i, dut.rst_ni, reset_active_level=False)
    ram = AxiLiteRam(AxiLiteBus.from_prefix(dut, "m_axi"), dut.clk_i, dut.rst_ni, reset_active_level=False, size=BYTES)
    for channel in (
        *(master.write_if.aw_channel, master.write_if.w_channel, master.write_if.b_channel),
        *(master.read_if.ar_channel, master.read_if.r_channel),
        *(ram.write_if.aw_channel, ram.write_if.w_channel, ram.write_if.b_channel),
        *(ram.read_if.ar_channel, ram.read_if.r_channel),
    ):
        channel.set_pause_generator(_pauses(random.Random(rng.random())))
    dut.rst_ni.value = 0
    await ClockCycles(dut.clk_i, 4)
    dut.rst_ni.value = 1
    await ClockCycles(dut.clk_i, 4)
    return master, ram


@cocotb.test()
async def bursts_reach_the_registers(dut: Any) -> None:
    rng = random.Random(3)
    master, ram = await _connected(dut, rng)
    model = bytearray(BYTES)
    for _ in range(120):
        length = rng.randint(1, 64)  # bursts of up to 16 beats
        address = rng.randrange(0, BYTES - length)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            model[address : address + length] = data
            answer = await master.write(address, data)
            assert int(answer.resp) == 0
        else:
            found = await master.read(address, length)
            assert found.data == bytes(model[address : address + length]), (address, length)
            assert int(found.resp) == 0
    assert ram.read(0, BYTES) == bytes(model)


@cocotb.test()
async def a_fixed_burst_stays_at_its_address(dut: Any) -> None:
    master, ram = await _connected(dut, random.Random(4))
    await master.write(0x20, bytes(range(16)), burst=AxiBurstType.FIXED)
    assert ram.read(0x20, 4) == bytes(range(12, 16))
    assert ram.read(0x24, 12) == bytes(12)


@cocotb.test()
async def both_directions_at_once_and_every_id_comes_back(dut: Any) -> None:
    rng = random.Random(5)
    master, ram = await _connected(dut, rng)
    ram.write(0, bytes(range(256)) * 2)
    reads = [master.init_read(4 * k, 16, arid=rng.randrange(1 << 12)) for k in range(40)]
    writes = [master.init_write(0x100 + 4 * k, bytes([k] * 4), awid=rng.randrange(1 << 12)) for k in range(40)]
    for k, operation in enumerate(reads):  # the master checks the identifiers itself
        await operation.wait()
        assert operation.data.data == bytes(range(4 * k, 4 * k + 16))
    for k, operation in enumerate(writes):
        await operation.wait()
        assert ram.read(0x100 + 4 * k, 4) == bytes([k] * 4)
