"""CPU time of a back-test per message: reading, scoring by the model, scores from the cache, fold and rules.

    taskset -c 0 python tests/benchmarks/bench_backtest.py INPUT.jsonl

In: a file that `backtest` reads. Prints messages per second of CPU time, which other load on the machine hardly touches; on one core
that is what a clock would show. The model is the configured one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from stream_sentiment.backtest.conversations import read_conversations
from stream_sentiment.backtest.decide import by_model
from stream_sentiment.backtest.run import figures, run
from stream_sentiment.backtest.scores import ScoreCache
from stream_sentiment.escalation.rules import load_rules
from stream_sentiment.scoring.corrections import Corrector
from stream_sentiment.settings import load_settings
from stream_sentiment.worker import load_scorer


def main(source: Path) -> None:
    settings, rules = load_settings(), load_rules(None)
    scorer = load_scorer(settings)
    scorer.score(["warm up"])
    began = time.process_time()
    conversations = list(read_conversations(source))
    reading = time.process_time() - began
    messages = sum(len(conversation.messages) for conversation in conversations)
    texts = [m.text for c in conversations for m in c.messages if m.text is not None]
    with tempfile.TemporaryDirectory() as folder:
        cache = ScoreCache(Path(folder) / "scores.sqlite")
        began = time.process_time()
        cache.scores(scorer, texts)
        scoring = time.process_time() - began
        began = time.process_time()
        scores = cache.scores(scorer, texts)
        cached = time.process_time() - began
        cache.close()
    judge = by_model(scores, rules.finder(scorer.info), Corrector.of(settings.corrections, scorer.info))
    began = time.process_time()
    results = run(conversations, rules, judge)
    deciding = time.process_time() - began
    began = time.process_time()
    figures(results, rules)
    counting = time.process_time() - began
    print(
        f"{len(conversations)} conversations, {messages} messages, {len(texts)} scored, {len(set(texts))} distinct texts"
    )
    for name, seconds in (
        ("reading", reading),
        ("scoring", scoring),
        ("scores from the cache", cached),
        ("fold and rules", deciding),
        ("figures", counting),
    ):
        print(f"{name:<22} {seconds:8.2f} s {1e6 * seconds / messages:8.1f} us a message")
    rest = reading + deciding + counting
    print(f"first run   {messages / (rest + scoring):8.0f} messages/s")
    print(f"cached      {messages / (rest + cached):8.0f} messages/s")
    print(f"one more value of a sweep {messages / (deciding + counting):8.0f} messages/s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
