"""The rate limit: never more than burst + rate x t over all replicas, nearly that much for one that wants it."""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.serving.rate_limit import LEASE_S, Bank, Bucket, Lease, Wallet
from retina_ray.serving.refusals import RefusedError

ROOT = Path(__file__).resolve().parents[2]
SECOND = 10**9
KEY = "clinic-a"


class FakeClock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Replicas:
    """A bank and wallets under one pretended clock; every call to the bank takes ``call_ns``."""

    def __init__(self, per_minute: int, count: int, call_ns: int = 0) -> None:
        self.clock = FakeClock()
        self.calls = 0
        self.bank = Bank({KEY: per_minute}, self.clock)
        self.wallets = [Wallet(self.lease, self.clock) for _ in range(count)]
        self.call_ns = call_ns
        self.admitted: list[tuple[int, int]] = []  # when, how many
        self.kinds: set[str] = set()  # of refusals

    async def lease(self, key_id: str, wanted: int) -> Lease:
        self.calls += 1
        self.clock.now += self.call_ns // 2
        await asyncio.sleep(0)
        lease = self.bank.lease(key_id, wanted)
        await asyncio.sleep(0)
        self.clock.now += self.call_ns // 2
        return lease

    async def ask(self, wallet: int, n: int = 1) -> bool:
        try:
            await self.wallets[wallet].admit(KEY, n)
        except RefusedError as error:
            self.kinds.add(error.kind)
            return False
        self.admitted.append((self.clock.now, n))
        return True

    @property
    def total(self) -> int:
        return sum(n for _, n in self.admitted)

    async def flood(self, seconds: float, every_ns: int, wallets: int) -> None:
        """Ask for a photograph at each wallet in turn, at a steady pace."""
        end = self.clock.now + int(seconds * SECOND)
        turn = 0
        while self.clock.now < end:
            await self.ask(turn % wallets)
            turn += 1
            self.clock.now += every_ns


# -- the bucket


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    clock = FakeClock()
    bucket = Bucket(120, 5, clock)
    assert not bucket.take(6)
    assert bucket.take(5)
    assert not bucket.take(1)
    clock.now += SECOND // 2 - 1
    assert not bucket.take(1)
    clock.now += 1
    assert bucket.take(1)
    clock.now += 3600 * SECOND
    assert not bucket.take(6)
    assert bucket.take(5)


@given(per_minute=st.integers(1, 10**9), burst=st.integers(1, 10**6), data=st.data())
def test_the_wait_is_exact(per_minute: int, burst: int, data: st.DataObject) -> None:
    clock = FakeClock()
    bucket = Bucket(per_minute, burst, clock)
    assert bucket.take(data.draw(st.integers(0, burst)))
    wanted = data.draw(st.integers(1, burst))
    wait = bucket.wait_s(wanted)
    assert wait is not None
    nanoseconds = round(wait * SECOND)
    if nanoseconds > 1 and nanoseconds < 2**50:  # beyond, seconds in a float are too coarse for nanoseconds
        clock.now += nanoseconds - 1
        assert not bucket.take(wanted)
        clock.now += 1
    else:
        clock.now += nanoseconds + 1000
    assert bucket.take(wanted)
    assert bucket.wait_s(burst + 1) is None


# -- the property that all of this is for


@settings(max_examples=100)
@given(
    per_minute=st.integers(1, 600),
    count=st.integers(1, 5),
    call_ns=st.sampled_from([0, 1_000_000, SECOND, 5 * SECOND]),
    steps=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 30 * SECOND), st.sampled_from([0, 1_000_000, SECOND // 10])),
            st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), min_size=1, max_size=6),
        ),
        max_size=40,
    ),
)
def test_never_more_than_burst_and_rate_allow(
    per_minute: int, count: int, call_ns: int, steps: list[tuple[int, list[tuple[int, int]]]]
) -> None:
    """Requests of any size come at any time, several at once, to any of the wallets."""
    replicas = Replicas(per_minute, count, call_ns)

    async def play() -> None:
        for passed, requests in steps:
            replicas.clock.now += passed
            await asyncio.gather(*(replicas.ask(wallet % count, n) for wallet, n in requests))

    asyncio.run(play())
    assert replicas.kinds <= {"rate-limited"}
    check_bounds(replicas, per_minute, slack_ns=max(int(LEASE_S * SECOND), 12 * call_ns))


def check_bounds(replicas: Replicas, per_minute: int, *, slack_ns: int) -> None:
    """Check the bound from the start exactly, and in every stretch with what a lease may be late by."""
    token = 60 * SECOND
    so_far = 0
    for now, n in replicas.admitted:
        so_far += n
        assert so_far * token <= per_minute * token + per_minute * now
    times = [now for now, _ in replicas.admitted]
    assert times == sorted(times)
    for first, (since, _) in enumerate(replicas.admitted):
        inside = 0
        for now, n in replicas.admitted[first:]:
            inside += n
            assert inside * token <= per_minute * token + per_minute * (now - since + slack_ns)


# -- and that little of the allowance is lost


@pytest.mark.parametrize("per_minute", [6, 60, 600, 6000])
@pytest.mark.parametrize("wallets", [1, 3])
def test_nearly_all_of_the_allowance_can_be_used(per_minute: int, wallets: int) -> None:
    replicas = Replicas(per_minute, wallets)
    asyncio.run(replicas.flood(120, every_ns=60 * SECOND // per_minute // 3 + 1, wallets=wallets))
    allowed = per_minute + per_minute * 120 / 60
    assert 0.99 * allowed - 1 <= replicas.total <= allowed


def test_little_is_lost_of_what_a_sender_below_the_rate_needs() -> None:
    replicas = Replicas(600, 3)
    assert replicas.bank.lease(KEY, 600).granted  # no burst to live on
    replicas.clock.now += SECOND
    asyncio.run(replicas.flood(120, every_ns=SECOND // 9, wallets=3))  # 9 a second of 10
    assert replicas.total >= 0.97 * 9 * 120


def test_an_admitted_request_rarely_needs_a_call() -> None:
    replicas = Replicas(6000, 3)
    asyncio.run(replicas.flood(60, every_ns=SECOND // 90, wallets=3))
    assert replicas.total >= 90 * 60
    assert replicas.calls < 0.06 * replicas.total


def test_the_refused_need_few_calls() -> None:
    replicas = Replicas(60, 1)
    asyncio.run(replicas.flood(60, every_ns=SECOND // 1000, wallets=1))
    assert replicas.calls < 4 * replicas.total  # of 60,000 requests


def test_many_at_once_share_calls() -> None:
    replicas = Replicas(6000, 1)

    async def play() -> list[bool]:
        return await asyncio.gather(*(replicas.ask(0) for _ in range(500)))

    assert all(asyncio.run(play()))
    assert replicas.calls < 20


# -- leases


def test_unused_leased_tokens_expire_and_do_not_come_back() -> None:
    replicas = Replicas(600, 1)

    async def play() -> None:
        for _ in range(40):  # at 20 a second, so that the wallet leases ahead
            assert await replicas.ask(0)
            replicas.clock.now += SECOND // 20
        taken = replicas.total
        left = sum(1 for _ in range(10_000) if replicas.bank.lease(KEY, 1).granted)  # by others
        held = 600 + 10 * 2 - taken - left
        assert held > 0
        replicas.clock.now += int(LEASE_S * SECOND)
        calls = replicas.calls
        assert await replicas.ask(0)
        assert replicas.calls > calls  # what it held is void
        left = sum(1 for _ in range(10_000) if replicas.bank.lease(KEY, 1).granted)
        assert left <= 10 * LEASE_S - 1  # and went nowhere

    asyncio.run(play())


def test_a_batch_gets_all_or_nothing_and_is_not_starved_by_its_own_attempts() -> None:
    replicas = Replicas(60, 2)

    async def play() -> int:
        assert await replicas.ask(0, 50)
        attempts = 0
        while not await replicas.ask(attempts % 2, 50):  # impatient: ten times a second, at both replicas
            attempts += 1
            replicas.clock.now += SECOND // 10
        return replicas.clock.now

    assert asyncio.run(play()) == pytest.approx(40 * SECOND, abs=SECOND // 5)


def refusal(replicas: Replicas, n: int) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        asyncio.run(replicas.wallets[0].admit(KEY, n))
    return refused.value


def test_the_refusal_says_when_it_is_worth_while_again() -> None:
    replicas = Replicas(60, 1)
    asyncio.run(replicas.ask(0, 60))
    error = refusal(replicas, 10)
    assert error.retry_after == pytest.approx(10.0)
    assert "clinic-a has sent as many photographs as it may; send 10 more in 10.0 s" in error.detail
    replicas.clock.now += 4 * SECOND
    assert refusal(replicas, 10).retry_after == pytest.approx(6.0)
    assert asyncio.run(replicas.ask(0, 4))  # smaller ones pass meanwhile
    replicas.clock.now += 10 * SECOND
    assert asyncio.run(replicas.ask(0, 10))


def test_what_can_never_pass_is_told_so() -> None:
    replicas = Replicas(60, 1)
    error = refusal(replicas, 61)
    assert error.retry_after is None
    assert "may never send 61 photograph(s) at once; send fewer" in error.detail
    assert asyncio.run(replicas.ask(0, 60))


def test_a_key_that_the_bank_does_not_know_gets_nothing() -> None:
    replicas = Replicas(60, 1)
    with pytest.raises(RefusedError, match="may never send"):
        asyncio.run(replicas.wallets[0].admit("clinic-b", 1))


def test_keys_do_not_share_allowances() -> None:
    bank = Bank({"a": 10, "b": 10}, FakeClock())
    assert bank.lease("a", 10) == Lease(10, LEASE_S, 0.0)
    assert bank.lease("a", 1) == Lease(0, 0.0, 6.0)
    assert bank.lease("b", 10).granted == 10


def test_a_bank_that_fails_admits_nothing_and_can_be_asked_again() -> None:
    answers: list[Callable[[], Awaitable[Lease]]] = []

    async def lease(key_id: str, wanted: int) -> Lease:
        return await answers.pop(0)()

    async def broken() -> Lease:
        raise ConnectionError("the bank is gone")

    async def back() -> Lease:
        return Lease(1, LEASE_S, 0.0)

    answers += [broken, back]
    wallet = Wallet(lease, FakeClock())
    with pytest.raises(ConnectionError):
        asyncio.run(wallet.admit(KEY, 1))
    asyncio.run(wallet.admit(KEY, 1))


# -- three replicas as processes

REPLICA = """
import asyncio, json, sys, time
from retina_ray.serving.rate_limit import Lease, Wallet
from retina_ray.serving.refusals import RefusedError

async def main():
    reader, writer = await asyncio.open_unix_connection(sys.argv[1])
    async def lease(key_id, wanted):
        writer.write(json.dumps([key_id, wanted]).encode() + b"\\n")
        return Lease(*json.loads(await reader.readline()))
    wallet, admitted, refused = Wallet(lease), 0, 0
    assert await reader.readline() == b"go\\n"
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end or not refused:
        try:
            await wallet.admit("clinic-a", 1)
            admitted += 1
        except RefusedError:
            refused += 1
        await asyncio.sleep(0)
    print(admitted, refused)
    writer.close()

asyncio.run(main())
"""


def test_three_processes_together_keep_the_limit(tmp_path: Path) -> None:
    per_minute, seconds = 1200, 1.5
    socket = tmp_path / "bank"

    async def play() -> tuple[list[tuple[int, int]], float]:
        connected: list[asyncio.StreamWriter] = []
        everyone = asyncio.Event()
        bank: Bank | None = None

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.append(writer)
            if len(connected) == 3:
                everyone.set()
            while line := await reader.readline():
                assert bank is not None
                lease = bank.lease(*json.loads(line))
                writer.write(json.dumps([lease.granted, lease.expires_in_s, lease.retry_after_s]).encode() + b"\n")
            writer.close()

        server = await asyncio.start_unix_server(serve, socket)
        command = [sys.executable, "-c", REPLICA, str(socket), str(seconds)]
        processes = [await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
        try:
            await asyncio.wait_for(everyone.wait(), 60)
            started = time.monotonic()
            bank = Bank({KEY: per_minute})
            for writer in connected:
                writer.write(b"go\n")
            outputs = [(await asyncio.wait_for(process.communicate(), 60))[0] for process in processes]
            took = time.monotonic() - started
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
            server.close()
        counts = [tuple(map(int, output.split())) for output in outputs]
        return [(admitted, refused) for admitted, refused in counts], took

    counts, took = asyncio.run(play())
    admitted = [count for count, _ in counts]
    assert sum(admitted) <= per_minute + math.floor(per_minute * took / 60)
    assert sum(admitted) >= 0.95 * (per_minute + per_minute * seconds / 60)
    assert all(count > 0 for count in admitted)
    assert all(refused > 0 for _, refused in counts)  # they asked for more than there was
