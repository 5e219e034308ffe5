"""How S3 is opened, and what its errors mean. Nothing else in the package speaks to S3 but through here.

Credentials, region and endpoint come from the usual environment variables and files. What is not here: files and
folders (``store``).
"""

import os
import re
from functools import lru_cache

import boto3
import botocore.session
import pyarrow.fs as pafs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from retina_ray.errors import DataError

_TRIES = 8
"""Ride out about 30 s of 500 and 503 answers; three, the default, about 2 s."""

_PROBE_TRIES = 4
"""Of the first word with a server: about 5 s, after which it counts as dead or mistyped."""

_CONNECT_S, _REQUEST_S = 5, 30

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and what they permit"
_REFUSED = ("the storage refuses these credentials", _CREDENTIALS)
_OUT_OF_ORDER = ("the storage is out of order", "try again later")
_MEANINGS = {
    **dict.fromkeys(("ACCESSDENIED", "INVALIDACCESSKEYID", "SIGNATUREDOESNOTMATCH", "EXPIREDTOKEN", "403"), _REFUSED),
    "NOSUCHBUCKET": ("there is no such bucket", "check its name, and the region"),
    "NETWORKCONNECTION": ("the storage cannot be reached", "check the network and AWS_ENDPOINT_URL"),
    **dict.fromkeys(("SLOWDOWN", "INTERNALFAILURE", "INTERNALERROR", "SERVICEUNAVAILABLE"), _OUT_OF_ORDER),
    **dict.fromkeys(("500", "502", "503", "504"), _OUT_OF_ORDER),
}
"""Code of an answer, what it means, and what to do."""

_CODE = re.compile(r"AWS Error (\w+)|HTTP status (\d+)|An error occurred \((\w+)\)")
"""Where pyarrow and boto3 put the code; names of files may look like codes too."""


def filesystem(bucket: str) -> pafs.S3FileSystem:
    """Open S3 so that passing errors are waited out and a dead server is noticed.

    Raises:
        DataError: the endpoint cannot be reached, there is no such bucket, or there are no credentials.
    """
    return _open(bucket, *_place(), _identity())


def create(bucket: str, key: str, data: bytes) -> bool:
    """Write an object unless there is one (If-None-Match); tell whether it was written.

    A request whose answer was lost is repeated, and then finds what it wrote itself: that counts as written.

    Raises:
        OSError: the storage refuses.
    """
    endpoint, region = _place()
    client = _client(endpoint, region, tries=_TRIES)
    try:
        for _ in range(_TRIES):
            try:
                client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in ("ConditionalRequestConflict", "409"):  # another is writing it just now
                    continue
                if code not in ("PreconditionFailed", "412"):
                    raise
                return bool(client.get_object(Bucket=bucket, Key=key)["Body"].read() == data)
    except ClientError as error:
        raise OSError(str(error)) from error
    except BotoCoreError as error:
        raise OSError(f"AWS Error NETWORK_CONNECTION: {error}") from error
    return False


def explain(error: OSError, address: str) -> DataError:
    """Return an error in our words for one of the storage.

    Args:
        error: as pyarrow raises it.
        address: of the file or folder it is about.
    """
    text = " ".join(str(error).split())
    found = _CODE.search(text)
    code = next(filter(None, found.groups())).replace("_", "").upper() if found else ""
    what, fix = _MEANINGS.get(code, ("the storage did not answer as asked", "see its answer"))
    return DataError(what, address, f"{fix} ({text})")


def session() -> boto3.Session:
    """Return a session for whoever speaks to S3 by itself, with our place, patience and the present credentials."""
    endpoint, region = _place()
    core = botocore.session.Session()
    core.set_default_client_config(_config(_TRIES))
    return boto3.Session(botocore_session=core, region_name=region or ("us-east-1" if endpoint else None))


def _place() -> tuple[str | None, str | None]:
    """Return endpoint and region; None for those of AWS."""
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint is not None:
        # Servers other than AWS's refuse uploads whose checksum follows in a trailer, the default of newer clients.
        environment.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return endpoint, environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")


def _identity() -> tuple[tuple[str, str], ...]:
    """Return what the environment says of credentials; with others, S3 must be opened anew."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@lru_cache(maxsize=8)
def _open(
    bucket: str, endpoint: str | None, region: str | None, identity: tuple[tuple[str, str], ...]
) -> pafs.S3FileSystem:
    """Open S3 for a bucket, once.

    The request timeout bounds one request, not a whole file. The delayed opening turns small writes into one PUT.
    """
    region = _probe(bucket, endpoint, region) or region or "us-east-1"
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        request_timeout=_REQUEST_S,
        connect_timeout=_CONNECT_S,
        allow_delayed_open=True,
    )


def _probe(bucket: str, endpoint: str | None, region: str | None) -> str | None:
    """Return the bucket's region where the storage tells it; without a word from it, what is wrong with the address.

    Whoever may read objects but not look at their bucket is answered 403 here, so that is left to the first request.
    """
    try:
        answer = _client(endpoint, region, tries=_PROBE_TRIES).head_bucket(Bucket=bucket)
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        if code in ("404", "NoSuchBucket"):
            raise DataError("there is no such bucket", f"s3://{bucket}", "check its name, and the region") from error
        headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
        return str(headers["x-amz-bucket-region"]) if "x-amz-bucket-region" in headers else None
    except NoCredentialsError as error:
        raise DataError("there are no credentials for the storage", f"s3://{bucket}", _CREDENTIALS) from error
    except BotoCoreError as error:
        where = endpoint or "AWS"
        fix = f"check the network, AWS_ENDPOINT_URL and AWS_REGION ({error})"
        raise DataError("the storage cannot be reached", f"s3://{bucket} at {where}", fix) from error
    return str(answer["BucketRegion"]) if answer.get("BucketRegion") else None


def _client(endpoint: str | None, region: str | None, *, tries: int) -> "boto3.client":
    # A session of its own, since the default one keeps the credentials that it found first.
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region or "us-east-1", config=_config(tries))


def _config(tries: int) -> Config:
    return Config(
        retries={"mode": "standard", "total_max_attempts": tries},
        connect_timeout=_CONNECT_S,
        read_timeout=_REQUEST_S,
    )
