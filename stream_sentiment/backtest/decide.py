"""One conversation through the worker's own step.

In: a conversation, the rules, what the model and the lexicon say about each message. Out: what was announced, each with the index
of the newest message that had been written. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from stream_sentiment.backtest.conversations import Conversation, Message
from stream_sentiment.backtest.scores import gold_score
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.conversation.turn import ConversationIdentity, Signal
from stream_sentiment.escalation.advance import advance
from stream_sentiment.escalation.machine import tick
from stream_sentiment.escalation.rules import RuleSet
from stream_sentiment.escalation.signals import SignalFinder
from stream_sentiment.escalation.transition import Transition
from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.corrections import Corrector

# Score, signals and complaint categories of a message.
Judgement = tuple[Score | None, tuple[Signal, ...], tuple[str, ...]]
Judge = Callable[[Conversation, Message], Judgement]


@dataclass(frozen=True, slots=True)
class Decision:
    """A transition, and the newest message that had been written when it was announced."""

    transition: Transition
    message_index: int


def decide(conversation: Conversation, rules: RuleSet, judge: Judge) -> list[Decision]:
    """What a timer does is told at the message before it; after the last message as long as the conversation's silence lasts."""
    identity = ConversationIdentity(conversation.tenant_id, conversation.id)
    state: ConversationState | None = None
    decisions: list[Decision] = []
    for index, message in enumerate(conversation.messages):
        if message.turn is None:
            continue
        turn = message.turn
        if message.text is not None:
            score, signals, topics = judge(conversation, message)
            turn = turn._replace(score=score, signals=signals, topics=topics)
        result = advance(state, turn, identity, rules)
        state = result.state
        for transition in result.transitions:
            earlier = transition.at_ms < turn.at_ms and transition.message_id != turn.message_id
            decisions.append(Decision(transition, max(0, index - 1) if earlier else index))
    if state is not None and conversation.silence_ms:
        last = len(conversation.messages) - 1
        due = tick(state, state.last_event_at_ms + conversation.silence_ms, rules)
        decisions += [Decision(transition, last) for transition in due]
    return decisions


def by_model(scores: dict[str, Score], finder: SignalFinder, corrector: Corrector | None = None) -> Judge:
    """The model's scores as the worker corrects them, and the signals that it would hear."""
    corrector = corrector or Corrector()

    def judge(conversation: Conversation, message: Message) -> Judgement:
        score = scores.get(message.text or "")
        if score is not None:
            score, _ = corrector.correct(message.prepared, score, tenant_id=conversation.tenant_id)
        return score, *finder.hear(message.prepared, score, conversation.tenant_id)

    return judge


def by_labels() -> Judge:
    """The labels of the file: the ceiling that a perfect model would reach."""

    def judge(conversation: Conversation, message: Message) -> Judgement:
        if message.gold is None:
            return None, (), ()
        signals = tuple(Signal(name, "model") for name in sorted(message.gold.get("signals", ())))
        return gold_score(message.gold), signals, ()

    return judge


def with_noise(judge: Judge, share: float, seed: int = 1) -> Judge:
    """Flip this share of the scores, mostly to the neighbouring class, as a weaker model would; the same ones in every run."""

    def noisy(conversation: Conversation, message: Message) -> Judgement:
        score, signals, topics = judge(conversation, message)
        name = "" if message.turn is None else message.turn.message_id
        rng = Random(f"{seed}/{conversation.id}/{name}")
        if score is None or rng.random() >= share:
            return score, signals, topics
        return _flipped(score, rng), signals, topics

    return noisy


def _flipped(score: Score, rng: Random) -> Score:
    label = "neutral" if score.label != "neutral" else rng.choice(("negative", "positive"))
    value = {"negative": -0.8, "neutral": 0.0, "positive": 0.8}[label]
    emotion = {"negative": "disappointment", "neutral": "neutral", "positive": "joy"}[label]
    return replace(score, score=value, label=label, emotion_label=emotion)
