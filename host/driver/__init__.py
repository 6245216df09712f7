"""From quantized tensors to stream programs and back: the fabric as an engine of products."""
