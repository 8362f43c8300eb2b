"""The log of everything that a study reads of its test images."""

from __future__ import annotations

import time
from pathlib import Path

TEST_READS = "test-reads.log"


def log_read(folder: Path, reason: str) -> None:
    """Writes down that the test images are about to be read.

    Args:
        folder: of the study.
        reason: for what.
    """
    with (folder / TEST_READS).open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(reason.split())}\n")
