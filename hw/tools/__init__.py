"""Programs that build the hardware: C++ compiler, Yosys, Vivado."""
