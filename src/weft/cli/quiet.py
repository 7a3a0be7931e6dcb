"""What Lightning says that asks nothing of the user of a recipe or of the demo."""

from __future__ import annotations

import logging
import warnings

MESSAGES = (
    ".*does not have many workers",  # the images lie in memory
    ".*LeafSpec",  # torch's own, met inside Lightning
    r"(?s).*(JsonargparseDeprecationWarning|was deprecated in v4\.49)",  # how Lightning calls jsonargparse
    "torch.distributed.nn.functional.all_gather is deprecated",  # how Lightning gathers
    "LightningCLI's args parameter",
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "The number of training batches .* is smaller than the logging interval",
)


def quiet(*more: str) -> None:
    """Silence notices and the warnings of ``MESSAGES`` for the rest of the process.

    Args:
        *more: further warnings, as regular expressions from their beginning.
    """
    for chatty in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for message in (*MESSAGES, *more):
        warnings.filterwarnings("ignore", message=message)
