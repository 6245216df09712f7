"""Reports: reference pages of a design as templates, and what the cost models found as pages and pictures."""
