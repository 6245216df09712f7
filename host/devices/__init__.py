"""The device interface and its implementations: reference, HLS, RTL, PYNQ, remote."""
