"""How many photographs a key may send, over all replicas.

One process keeps the `Bank`, a token bucket per key. Each replica has a `Wallet`, which leases tokens in advance where
a key sends steadily, so that an admitted request rarely waits for the bank. Only what the bank has given out is ever
admitted: over all replicas, no more than burst + rate x t in the t seconds since the bank began. Leased tokens may be
used `LEASE_S` seconds later, so in any t seconds it is no more than burst + rate x (t + `LEASE_S`).

Tokens that a wallet leases and does not use are lost. It leases no more than it has just seen used, and nothing in
advance while the bank is short, so that a key which asks for all of its allowance gets nearly all.

Time is whole nanoseconds: the arithmetic is exact.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from retina_ray.serving.refusals import RefusedError

Clock = Callable[[], int]
"""Nanoseconds that never go back, such as `time.monotonic_ns`."""

LEASE_S = 2.0
"""Seconds after which leased tokens are void. Longer saves few calls and wastes more where a key falls silent."""

_AHEAD_S = 1.0
"""Seconds of use that a wallet leases in advance; less than `LEASE_S`, so that a steady sender uses all of it."""

_SECOND = 10**9
_TOKEN = 60 * _SECOND  # a token in tokens-per-minute x nanoseconds, the unit of a bucket's level


class Bucket:
    """A token bucket, full at first.

    Args:
        per_minute: tokens that come in a minute, at least 1.
        burst: tokens that it holds at most, at least 1.
        clock: the time.
    """

    def __init__(self, per_minute: int, burst: int, clock: Clock = time.monotonic_ns) -> None:
        self._per_minute = per_minute
        self._capacity = self._level = burst * _TOKEN
        self._clock = clock
        self._filled = clock()

    def take(self, wanted: int) -> bool:
        """Take so many tokens, or none where there are fewer; tell which."""
        self._fill()
        if wanted * _TOKEN > self._level:
            return False
        self._level -= wanted * _TOKEN
        return True

    def wait_s(self, wanted: int) -> float | None:
        """Return the seconds until so many tokens are there, if none are taken; None where they never are."""
        self._fill()
        if wanted * _TOKEN > self._capacity:
            return None
        missing = max(0, wanted * _TOKEN - self._level)
        return -(-missing // self._per_minute) / _SECOND

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._filled) * self._per_minute)
        self._filled = now


@dataclass(frozen=True, slots=True)
class Lease:
    """The bank's answer.

    Attributes:
        granted: tokens; as many as were wanted, or 0. Part of what a batch needs would be of no use to it, and would
            keep others, and the batch's next attempt, waiting.
        expires_in_s: seconds, from when they were asked for, after which unused ones are void.
        retry_after_s: seconds after which they may be granted: 0 where they were, None where they never are.
    """

    granted: int
    expires_in_s: float
    retry_after_s: float | None


class Bank:
    """The buckets of all keys; for one thread. A new bank's buckets are full.

    Args:
        per_minute: tokens a minute by key id; as many may be taken at once.
        clock: the time.
    """

    def __init__(self, per_minute: Mapping[str, int], clock: Clock = time.monotonic_ns) -> None:
        self._clock = clock
        self._per_minute: dict[str, int] = {}
        self._buckets: dict[str, Bucket] = {}
        self.know(per_minute)

    def know(self, per_minute: Mapping[str, int]) -> None:
        """Take other allowances; a key whose allowance stays keeps what is in its bucket.

        Args:
            per_minute: tokens a minute by key id.
        """
        if per_minute == self._per_minute:
            return
        self._buckets = {
            key_id: self._buckets[key_id]
            if self._per_minute.get(key_id) == tokens
            else Bucket(tokens, tokens, self._clock)
            for key_id, tokens in per_minute.items()
        }
        self._per_minute = dict(per_minute)

    def lease(self, key_id: str, wanted: int) -> Lease:
        """Give out tokens.

        Args:
            key_id: of the key; one that the bank does not know never gets any.
            wanted: how many, at least 1.
        """
        bucket = self._buckets.get(key_id)
        if bucket is None:
            return Lease(0, 0.0, None)
        if bucket.take(wanted):
            return Lease(wanted, LEASE_S, 0.0)
        return Lease(0, 0.0, bucket.wait_s(wanted))


@dataclass(slots=True)
class _Purse:
    """What a wallet holds and knows of one key; times in ns.

    Attributes:
        tokens: leased and not spent.
        expires: when they are void.
        asked: when the bank was last asked.
        spent: tokens since then.
        short: size of the request that the bank last had too little for.
        opens: until when it cannot have enough for that, since tokens never come back to it.
        refused: when it said so.
    """

    tokens: int = 0
    expires: int = 0
    asked: int = 0
    spent: int = 0
    short: int = 0
    opens: int = 0
    refused: int | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def spend(self, count: int, now: int) -> bool:
        """Pay out of what is at hand, where it is enough."""
        if count > self.tokens or now >= self.expires:
            return False
        self.tokens -= count
        self.spent += count
        return True

    def ahead(self, now: int) -> int:
        """Return how many tokens to ask for in advance: those of `_AHEAD_S` at the present pace.

        No more than twice those spent since the last time, so that a short flurry leases little.
        """
        if self.refused is not None and now - self.refused < LEASE_S * _SECOND:
            return 0
        elapsed = max(1, now - self.asked)
        return int(self.spent * min(2.0, _AHEAD_S * _SECOND / elapsed))


class Wallet:
    """A replica's share of the allowances; for one event loop.

    Args:
        lease: asks the bank for (key id, tokens). What it raises, `admit` raises.
        clock: the time; may be another than the bank's.
    """

    def __init__(self, lease: Callable[[str, int], Awaitable[Lease]], clock: Clock = time.monotonic_ns) -> None:
        self._lease = lease
        self._clock = clock
        self._purses: defaultdict[str, _Purse] = defaultdict(_Purse)

    async def admit(self, key_id: str, n: int) -> None:
        """Let a request pass and count it.

        Args:
            key_id: of its key; of a known one, since what is known of a key is kept.
            n: photographs in it, at least 1.

        Raises:
            RefusedError: ``rate-limited``: the allowance is used up, with the seconds to wait; or is too small for a
                request of this size at any time.
        """
        purse = self._purses[key_id]
        if purse.spend(n, self._clock()):
            return
        async with purse.lock:  # one call at a time: those who wait may find what it brought in advance
            if not purse.spend(n, self._clock()):
                await self._fetch(key_id, n, purse)

    async def _fetch(self, key_id: str, n: int, purse: _Purse) -> None:
        """Lease what a request needs, and some in advance; spend it at once, however late it comes."""
        now = self._clock()  # before the call, so that the lease ends here no later than the bank thinks
        if n >= purse.short and now < purse.opens:
            raise _refused(key_id, n, (purse.opens - now) / _SECOND)
        ahead = purse.ahead(now)
        purse.asked, purse.spent = now, 0
        lease = await self._lease(key_id, n + ahead)
        if ahead and not lease.granted:
            lease = await self._lease(key_id, n)
        if not lease.granted:
            if lease.retry_after_s is not None:
                purse.short, purse.opens, purse.refused = n, now + int(lease.retry_after_s * _SECOND), now
            raise _refused(key_id, n, lease.retry_after_s)
        purse.tokens, purse.expires = lease.granted - n, now + int(lease.expires_in_s * _SECOND)
        purse.spent += n


def _refused(key_id: str, n: int, wait_s: float | None) -> RefusedError:
    if wait_s is None:
        what = f"the API key {key_id} may never send {n} photograph(s) at once; send fewer in one request"
        return RefusedError("rate-limited", what)
    what = f"the API key {key_id} has sent as many photographs as it may; send {n} more in {wait_s:.1f} s"
    return RefusedError("rate-limited", what, retry_after=wait_s)
