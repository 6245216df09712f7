"""What a training costs: operations, BitFusion, the fabric's time, the roofline, the paper's tables."""
