"""CPU time of the pure core per message: fold, rules, JSON. Run: python tests/benchmarks/bench_state.py

One core, process time, the fastest of many short chunks, because other programs on the machine slow the rest. The traffic is made up:
conversations of ten events, customer and agent in turn, a quarter of the customer's messages negative.

Caveats: everything sits in the CPU's cache, no text is touched, and the share of negative messages decides how often a
transition is built.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from stream_sentiment.conversation import ConversationIdentity, ConversationState, Turn, fold
from stream_sentiment.escalation import advance, load_rules, step
from stream_sentiment.scoring.calibration import Score

CHUNK, CHUNKS = 500, 60
KINDS = (
    ("negative", (0.80, 0.15, 0.05), ("anger", "disappointment", "anxiety"), 0.25),
    ("neutral", (0.10, 0.85, 0.05), ("neutral",), 0.60),
    ("positive", (0.03, 0.07, 0.90), ("joy",), 0.15),
)


def main() -> None:
    rules = load_rules(None)
    turns = traffic(CHUNK * CHUNKS)
    states: dict[str, ConversationState] = {}

    def fold_only(identity: ConversationIdentity, turn: Turn) -> None:
        states[identity[1]] = fold(states.get(identity[1]), turn, identity, rules.options).state

    def fold_and_step(identity: ConversationIdentity, turn: Turn) -> None:
        result = fold(states.get(identity[1]), turn, identity, rules.options)
        states[identity[1]] = result.state
        step(result.state, turn, result.outcome, rules, result.expired)

    def whole(identity: ConversationIdentity, turn: Turn) -> None:
        states[identity[1]] = advance(states.get(identity[1]), turn, identity, rules).state

    for name, work in (("fold", fold_only), ("fold + step", fold_and_step), ("advance", whole)):
        states.clear()
        report(name, [partial(each, work, part) for part in chunks(turns)], CHUNK)
    state = states[turns[-1][0][1]]
    data = state.to_json()
    report(f"to_json ({len(data)} bytes)", [lambda: [state.to_json() for _ in range(CHUNK)]] * 20, CHUNK)
    report("from_json", [lambda: [ConversationState.from_json(data) for _ in range(CHUNK)]] * 20, CHUNK)


def each(work: Callable[[ConversationIdentity, Turn], None], turns: list[Any]) -> None:
    for identity, turn in turns:
        work(identity, turn)


def chunks(turns: list[Any]) -> list[list[Any]]:
    return [turns[i : i + CHUNK] for i in range(0, len(turns), CHUNK)]


def report(name: str, works: list[Callable[[], Any]], n: int) -> None:
    times = []
    for work in works:
        start = time.process_time()
        work()
        times.append((time.process_time() - start) / n * 1e6)
    times.sort()
    print(f"{name:24} fastest {times[0]:6.2f} us   median {times[len(times) // 2]:6.2f} us")


def traffic(n: int) -> list[tuple[ConversationIdentity, Turn]]:
    rng = random.Random(1)
    turns = []
    for place in range(n):
        conversation, number = place // 10, place % 10
        role = "agent" if number % 2 else "customer"
        turns.append(
            (
                ConversationIdentity("shop", f"c{conversation}"),
                Turn(
                    "created",
                    f"{conversation:08d}-{number:04d}-0123456789ab",
                    1_700_000_000_000 + conversation * 1000 + number * 20_000,
                    role,
                    place,
                    score=score(rng) if role == "customer" else None,
                    channel="web_chat",
                    language="en",
                ),
            )
        )
    return sorted(turns, key=lambda pair: pair[1].at_ms)


def score(rng: random.Random) -> Score:
    label, polarity, emotions, _ = rng.choices(KINDS, [kind[3] for kind in KINDS])[0]
    value = polarity[2] - polarity[0] + rng.uniform(-0.05, 0.05)
    return Score(polarity, (0.7, 0.1, 0.05, 0.05, 0.05, 0.05), value, max(polarity), label, rng.choice(emotions), False)


if __name__ == "__main__":
    main()
