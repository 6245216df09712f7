"""From a product of training to the packets that compute it: shapes and widths, no data."""
