"""Tells Ray that AWS is about to take this machine back, so that a training leaves it with a checkpoint.

`python -m retina_ray.orchestration.spot_notice` beside the Ray node of a spot machine (cluster/aws.yaml starts it). AWS
announces an interruption two minutes ahead in the machine's own metadata, where Ray does not look. What lives here: the
looking, and `ray drain-node`. What does not: what a training does then (`worker.RayReporter.leaving`).
"""

import argparse
import json
import logging
import subprocess
import time
from datetime import datetime
from urllib.error import HTTPError
from urllib.request import Request, urlopen

METADATA = "http://169.254.169.254"
_EVERY_S = 5.0
_ANSWER_S = 2.0

logger = logging.getLogger(__name__)


def interruption(metadata: str = METADATA) -> datetime | None:
    """Return when AWS takes this machine back, or None while it has not said so.

    Raises:
        OSError: the metadata cannot be read.
    """
    seconds = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _answer(Request(f"{metadata}/latest/api/token", method="PUT", headers=seconds))
    action = f"{metadata}/latest/meta-data/spot/instance-action"
    try:
        said = _answer(Request(action, headers={"X-aws-ec2-metadata-token": token}))
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return datetime.fromisoformat(json.loads(said)["time"])


def drain(until: datetime) -> None:
    """Have Ray take nothing new onto this node, and whoever is on it know until when it is there.

    Raises:
        subprocess.CalledProcessError: Ray does not answer.
    """
    left = max(0, int(until.timestamp() - time.time()))
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "AWS takes the spot machine back"]
    subprocess.run(["ray", "drain-node", *why, "--deadline-remaining-seconds", str(left)], check=True)


def watch(metadata: str = METADATA, every_s: float = _EVERY_S) -> None:
    """Look until AWS takes the machine back, and tell Ray; returns when Ray knows."""
    while True:
        try:
            if (until := interruption(metadata)) is not None:
                logger.warning("AWS takes this machine back at %s", until)
                drain(until)
                return
        except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
            logger.warning("looking again in %g s: %s", every_s, error)
        time.sleep(every_s)


def _answer(request: Request) -> str:
    with urlopen(request, timeout=_ANSWER_S) as answer:
        text: str = answer.read().decode()
    return text


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata", default=METADATA, help="default: %(default)s")
    parser.add_argument("--every", type=float, default=_EVERY_S, help="seconds; default: %(default)s")
    given = parser.parse_args()
    watch(given.metadata, given.every)
