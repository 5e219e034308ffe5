"""Log lines as JSON, each with the run, trial, stage and rank that it is about, for those who search many at once."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

LOGGER = "retina_ray"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    Args:
        about: fields that every line has.
    """

    def __init__(self, about: Mapping[str, str | int]) -> None:
        super().__init__()
        self._about = dict(about)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, a traceback as one of its fields."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **self._about,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(about: Mapping[str, str | int]) -> None:
    """Write the product's log lines of this process to standard error, which Ray keeps with the node's other logs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(about))
    logger = logging.getLogger(LOGGER)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
