"""Stream programs: building them, packing codes into bit planes."""
