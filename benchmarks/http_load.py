"""A closed loop of HTTP clients: each asks, waits for the answer, and asks again."""

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Question:
    """A request.

    Attributes:
        path: with the query.
        content_type: of the body.
        body: the bytes.
    """

    path: str
    content_type: str
    body: bytes


@dataclass
class Measured:
    """What came of a load.

    Attributes:
        seconds: that it lasted.
        latencies_ms: of each answered request.
        failures: requests that were not answered, or with another status than 200.
    """

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile(self, share: float) -> float:
        """Return the latency that a share (percent) of the requests stays below, milliseconds."""
        return float(np.percentile(self.latencies_ms, share))


def load(url: str, questions: Sequence[Question], *, clients: int, seconds: float) -> Measured:
    """Ask an endpoint for some seconds.

    Args:
        url: its address.
        questions: that every client asks in turn, each from another one on.
        clients: that ask at a time, each over a connection of its own.
        seconds: after which none asks again.
    """
    measured = Measured()
    lock = threading.Lock()
    start = time.perf_counter()

    def ask(number: int) -> None:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
        while time.perf_counter() < start + seconds:
            begin = time.perf_counter()
            question = questions[number % len(questions)]
            number += 1
            answered = _ask(connection, question)
            took = 1e3 * (time.perf_counter() - begin)
            with lock:
                if answered:
                    measured.latencies_ms.append(took)
                else:
                    measured.failures += 1
        connection.close()

    _together(ask, clients)
    measured.seconds = time.perf_counter() - start
    return measured


def _ask(connection: http.client.HTTPConnection, question: Question) -> bool:
    try:
        connection.request("POST", question.path, question.body, {"Content-Type": question.content_type})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()  # the next request opens it again
        return False
    return answer.status == http.client.OK


def _together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
