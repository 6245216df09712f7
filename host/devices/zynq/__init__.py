"""What a Zynq board has beside the accelerator: contiguous memory, a loader of bitstreams, power monitors."""
