"""Random schedules of crashes, moves, lost replies and failovers over the shipped scripts.

    python -m tests.protocol.fuzz --schedules 1000            on a redis-server that it starts; on fakeredis where there is none
    python -m tests.protocol.fuzz --schedules 200 --fake      on fakeredis: no server, five times slower

Every schedule is replayable by its seed: `--seed 4711 --schedules 1`. Schedules are adversarial: read a count as "can it happen", not
as a frequency. Exit status 1 where the shipped protocol was wrong once, or a control never was.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fakeredis

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.testing.redis import RedisServer
from tests.protocol.model import make_log, sequential_fold
from tests.protocol.worker import Publishing, Steps, Worker, eraser
from tests.protocol.world import MOST_LOST_WRITES, ScriptedRedis, World

EVENTS = 20
"""Per partition; with two partitions and four conversations each, every conversation escalates once or twice."""

NEW_OWNER = 0.03
DEATH = 0.02
FAILOVER = 0.01
LATE_CALL = 0.05
ERASURE = 0.03

STARTS = (0, 1, 1_000, 1_234_567_890_123_456)
MOST_STEPS_TO_THE_END = 50_000


@dataclass(frozen=True)
class Variant:
    """The protocol, or the protocol without one of its parts."""

    name: str
    mutate: Callable[[str, str], str] = lambda name, source: source
    publishing: Publishing = Publishing.IDEMPOTENT
    noisy: bool = False
    erasures: bool = False
    keeps_token: bool = False
    """Workers believe that a tick leaves the token as it is."""


@dataclass
class Verdict:
    """What one schedule ended in. `copies` are allowed; everything else must be zero."""

    seed: int
    wrong_state: int = 0
    lost: int = 0
    wrong_output: int = 0
    stale_write: int = 0
    commit_ahead: int = 0
    stuck: int = 0
    doubled: int = 0
    copies: int = 0
    failovers: int = 0
    calls: int = 0

    def bad(self) -> bool:
        return any(
            (
                self.wrong_state,
                self.lost,
                self.wrong_output,
                self.stale_write,
                self.commit_ahead,
                self.stuck,
                self.doubled,
            )
        )


def without(scripts: str, *guards: str) -> Callable[[str, str], str]:
    """A `mutate` that removes exact pieces of scripts ("a.lua b.lua"); fails where one no longer has them."""

    def mutate(name: str, source: str) -> str:
        if name not in scripts.split():
            return source
        for guard in guards:
            if source.count(guard) != 1:
                raise AssertionError(f"{name} has changed: the control cannot find {guard!r}")
            source = source.replace(guard, "")
        return source

    return mutate


TOKEN_GUARD = "if token ~= ARGV[1] then\n  return {'FENCED', token}\nend\n"
ALREADY_GUARD = "if wm >= tonumber(ARGV[3]) then\n  return {'ALREADY', stored}\nend\n"
GAP_GUARD = "if wm ~= tonumber(ARGV[2]) then\n  return {'GAP', stored}\nend\n"
OUTBOX_WRITE = "for i = n + 7 + 2 * m, #ARGV, 2 do\n  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])\nend\n"

SHIPPED = Variant("shipped")
SHIPPED_ERASING = Variant("shipped, erasures", erasures=True)
"""Only without failovers: one may take an erasure back, and what was published before it stays published."""

ERASURE_WITHOUT_FENCE = Variant(
    "control: erasure does not fence",
    without("erase.lua", "redis.call('HSET', KEYS[1], 'token', ARGV[1], 'member', 'erasure')\n"),
    erasures=True,
)
SHIPPED_NOISY = Variant("shipped, model not bit-stable", noisy=True)
EXACTLY_ONCE = Variant("shipped, output.exactly_once", publishing=Publishing.TRANSACTIONAL)
UNFENCED = Variant("control: exactly_once without the producer's fence", publishing=Publishing.UNFENCED)
UNPROBED = Variant("control: exactly_once without the search", publishing=Publishing.UNPROBED)
BARRIERLESS = Variant("control: exactly_once, settled before the redo", publishing=Publishing.BARRIERLESS)
HASTY = Variant("control: exactly_once, settled too early", publishing=Publishing.HASTY)
NO_TOKEN_NO_WATERMARK = Variant(
    "control: neither token nor watermark", without("apply.lua", TOKEN_GUARD, ALREADY_GUARD, GAP_GUARD)
)
NO_OUTBOX = Variant("control: no outbox", without("apply.lua", OUTBOX_WRITE))
NO_TOKEN = Variant("control: no token, erasures", without("apply.lua load.lua", TOKEN_GUARD), erasures=True)
"""Without erasures the watermark alone is nearly enough: see test_guards.py for what the token prevents."""

NO_WATERMARK = Variant("control: no watermark", without("apply.lua", ALREADY_GUARD, GAP_GUARD))


SAME_TOKEN = Variant(
    "control: a tick keeps its token",
    lambda name, source: (
        source.replace("redis.call('HSET', KEYS[1], 'token', ARGV[2])\n", "").replace("if token == ARGV[2]", "if false")
        if name == "tick.lua"
        else source
    ),
    keeps_token=True,
)
NO_DEADLINES = Variant(
    "control: no deadlines",
    without("apply.lua", "    redis.call('ZADD', KEYS[3], ARGV[i + 1], ARGV[i])\n"),
)
#: Needs a failover that takes a published timer back and a settle before it is redone: 1 schedule of 600, see test_fuzz.py.
TIMERLESS = Variant("control: exactly_once, settled before the timers", publishing=Publishing.TIMERLESS)


def run_schedule(redis: Any, seed: int, variant: Variant, *, failovers: bool, faults: bool = True) -> Verdict:
    """One schedule to its end, and the comparison with the sequential fold."""
    rng = random.Random(f"{seed}/{failovers}")
    tps = [TopicPartition("chat.messages", 0), TopicPartition("product.reviews", 1)]
    logs = {tp: make_log(rng, tp, EVENTS, rng.choice(STARTS)) for tp in tps}
    world = World(rng, ScriptedRedis(redis, variant.mutate), logs, noisy=variant.noisy, faulty=faults)
    world.keeps_token = variant.keeps_token
    names = (f"worker-{number}" for number in range(1_000_000))

    def new_worker(assigned: list[TopicPartition]) -> Steps[None]:
        return Worker(world, next(names), assigned, variant.publishing).run()

    alive = [new_worker(tps)]
    for _ in range(rng.randint(60, 400) if faults else 0):
        fate = rng.random()
        if fate < NEW_OWNER or not alive:
            alive.append(new_worker(rng.choice((tps, tps[:1], tps[1:]))))
        elif fate < NEW_OWNER + DEATH:
            alive.pop(rng.randrange(len(alive))).close()
        elif failovers and fate < NEW_OWNER + DEATH + FAILOVER:
            world.fail_over(rng.choice((tps, tps[:1], tps[1:])), rng.randint(1, MOST_LOST_WRITES))
        elif fate > 1 - LATE_CALL:
            world.execute_late_call()
        elif variant.erasures and fate > 1 - LATE_CALL - ERASURE:
            alive.append(eraser(world, len(world.erasures)))
        else:
            step(alive, rng.randrange(len(alive)))
    verdict = Verdict(seed)
    # The last fair owner and all zombies, interleaved, to completion; then one clean owner without faults.
    if faults:
        alive.append(new_worker(tps))
    finish(world, alive, verdict)
    world.faulty = False
    while world.late:
        world.execute_late_call()
    finish(world, [new_worker(tps)], verdict)
    judge(world, verdict, noisy=variant.noisy)
    if variant.publishing is not Publishing.IDEMPOTENT:
        verdict.doubled = verdict.copies
    return verdict


def step(alive: list[Steps[None]], index: int) -> None:
    """One step of one worker; it leaves when it has finished."""
    try:
        next(alive[index])
    except StopIteration:
        del alive[index]


def finish(world: World, alive: list[Steps[None]], verdict: Verdict) -> None:
    for _ in range(MOST_STEPS_TO_THE_END):
        if not alive:
            return
        if world.late and world.rng.random() < LATE_CALL:
            world.execute_late_call()
        step(alive, world.rng.randrange(len(alive)))
    verdict.stuck += 1


def judge(world: World, verdict: Verdict, *, noisy: bool) -> None:
    """Compares the end of the world with the sequential fold."""
    truth = sequential_fold(world.logs, world.erasures)
    truth.outputs |= dict.fromkeys(world.notices, "erased")
    for tp, conversation in {(tp, record.conversation) for tp, log in world.logs.items() for record in log}:
        if conversation is None:
            continue
        found = world.state(tp, conversation)
        expected = truth.states.get((tp, conversation))
        if noisy and expected:
            # What the model said differs from worker to worker: every event once, in order, is what can be asked.
            found = found and found[: found.index(b"]")]
            expected = expected[: expected.index(b"]")]
        verdict.wrong_state += found != expected
    published = Counter(output.id for output in world.topic)
    verdict.lost = len(truth.outputs.keys() - published.keys())
    verdict.copies = sum(count - 1 for count in published.values())
    if noisy:
        verdict.wrong_output = len(published.keys() - truth.outputs.keys())
        if not world.failovers:
            # Two contents under one id: two workers' views of one event got out.
            verdict.wrong_output += len({(output.id, output.content) for output in world.topic}) - len(published)
    else:
        verdict.wrong_output = sum(truth.outputs.get(output.id) != output.content for output in world.topic)
    verdict.stale_write = world.broken_lineages
    verdict.commit_ahead = world.commits_ahead
    verdict.failovers = world.failovers
    verdict.calls = world.calls
    for tp, log in world.logs.items():
        verdict.stuck += world.watermark(tp) != log[-1].offset + 1 or world.outbox_size(tp) != 0
        verdict.stuck += world.deadlines(tp) != 0


@dataclass
class Table:
    """Schedules with at least one fault of each kind."""

    variant: str
    failovers: bool
    schedules: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    bad_seeds: list[int] = field(default_factory=list)

    COLUMNS = ("wrong_state", "lost", "wrong_output", "stale_write", "commit_ahead", "stuck", "doubled", "copies")

    def add(self, verdict: Verdict) -> None:
        self.schedules += 1
        for column in self.COLUMNS:
            self.counts[column] += bool(getattr(verdict, column))
        self.counts["calls"] += verdict.calls
        self.counts["failover_count"] += verdict.failovers
        if verdict.bad():
            self.bad_seeds.append(verdict.seed)

    def row(self) -> str:
        mode = "with" if self.failovers else "without"
        cells = [self.variant, mode, str(self.schedules), *(str(self.counts[column]) for column in self.COLUMNS)]
        return "| " + " | ".join(cells) + " |"


HEADER = (
    "| protocol | failover | schedules | "
    + " | ".join(Table.COLUMNS)
    + " |\n"
    + "|---" * (3 + len(Table.COLUMNS))
    + "|"
)


def run_many(redis: Any, variant: Variant, schedules: int, *, failovers: bool, seed: int = 0) -> Table:
    table = Table(variant.name, failovers)
    for number in range(seed, seed + schedules):
        table.add(run_schedule(redis, number, variant, failovers=failovers))
    return table


@contextmanager
def open_redis(*, fake: bool = False) -> Iterator[Any]:
    """A redis-server of our own, or fakeredis where none is installed or where it is asked for."""
    try:
        server = None if fake else RedisServer()
    except ServiceUnavailable:
        server = None
    if server is None:
        yield fakeredis.FakeRedis()
    else:
        with server, server.client() as client:
            yield client


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--schedules", type=int, default=1000, help="without failover, as many with; a quarter for each option"
    )
    parser.add_argument("--controls", type=int, default=60, help="schedules per control")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--fake", action="store_true", help="on fakeredis instead of a redis-server")
    options = parser.parse_args()
    wrong = False
    begin = time.monotonic()
    calls = 0
    with open_redis(fake=options.fake) as redis:
        print(f"on {type(redis).__module__.partition('.')[0]}\n\n{HEADER}", flush=True)
        for variant, count, is_control in (
            (SHIPPED, options.schedules, False),
            (SHIPPED_NOISY, options.schedules // 4, False),
            (SHIPPED_ERASING, options.schedules // 4, False),
            (EXACTLY_ONCE, options.schedules // 4, False),
            (NO_TOKEN_NO_WATERMARK, options.controls, True),
            (NO_WATERMARK, options.controls, True),
            (NO_OUTBOX, options.controls, True),
            (NO_TOKEN, options.controls, True),
            (ERASURE_WITHOUT_FENCE, options.controls, True),
            (UNFENCED, options.controls, True),
            (UNPROBED, options.controls, True),
            (BARRIERLESS, options.controls * 2, True),
            (HASTY, options.controls, True),
            (SAME_TOKEN, options.controls, True),
            (NO_DEADLINES, options.controls, True),
        ):
            tables = []
            for failovers in (False,) if variant.erasures else (False, True):
                table = run_many(redis, variant, count, failovers=failovers, seed=options.seed)
                print(table.row(), flush=True)
                tables.append(table)
                calls += table.counts["calls"]
                if table.bad_seeds and not is_control:
                    wrong = True
                    print(f"  bad seeds: {table.bad_seeds[:20]}", file=sys.stderr)
            if is_control and count and not any(table.bad_seeds for table in tables):
                wrong = True
                print(f"  {variant.name} was never caught", file=sys.stderr)
    print(f"\n{calls} calls to Redis in {time.monotonic() - begin:.0f} s")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
