"""The command: ``python -m tests.simulation --seeds 500 --first 1``."""

from __future__ import annotations

import sys

from tests.simulation.command import main

sys.exit(main())
