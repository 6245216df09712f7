"""Random programs, and co-simulation: the generated SystemVerilog under cocotb, with bus models on every port.

The C++ harness behind :class:`host.devices.rtl.RtlDevice` is for speed; this bench is for the protocol: AXI4-Lite registers,
independent pauses on each stream, interrupts, and resets in the middle of a packet.
"""
