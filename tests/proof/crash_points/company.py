"""The worker of the plays: `python -m kedge_worker run tests.proof.crash_points.company:worker`."""

from __future__ import annotations

import os

from kedge_worker import Worker
from tests.proof.crash_points.plays import ALL

worker = Worker(workflows=ALL) if "KEDGE_DATABASE_URL" in os.environ else None
