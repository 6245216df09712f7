"""What holds for all tests."""

from __future__ import annotations

import os

# workers that share the machine's cores compute with one thread each; OpenMP's threads would wait for one another
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
