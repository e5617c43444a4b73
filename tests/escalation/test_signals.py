"""Signals by words: what is found, what only looks like it, and where."""

from __future__ import annotations

import pytest
from turn_builders import WHO, customer, score

from stream_sentiment.conversation import Turn
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation import advance
from stream_sentiment.escalation.ruleformat import SIGNALS
from stream_sentiment.escalation.rules import parse_rules
from stream_sentiment.escalation.signals import Lexicon, SignalFinder, extend_lexicon, load_lexicon

FINDER = SignalFinder(load_lexicon())

FOUND = [
    ("转人工!!", "human_request"),
    ("给我找个真人来", "human_request"),
    ("我要找你们主管", "human_request"),
    ("Get me a real person, now", "human_request"),
    ("I want to speak to someone who can decide", "human_request"),
    ("不退我就打12315", "regulator_mention"),
    ("I'll report you to Trading Standards", "regulator_mention"),
    ("等着收律师函吧", "legal_threat"),
    ("my solicitor will write to you", "legal_threat"),
    ("录屏都有,小红书见", "media_threat"),
    ("this goes on Facebook tonight", "media_threat"),
    ("把钱全部退给我", "refund_request"),
    ("I’d like my money back", "refund_request"),
    ("充电宝冒烟了", "safety_risk"),
    ("it started sparking and there were flames", "safety_risk"),
    ("你们就是一群饭桶", "abuse"),
    ("absolute clowns", "abuse"),
    ("I'm cancelling and taking my business elsewhere", "churn"),
    ("卸载了,886", "churn"),
    ("我已经说了三遍了", "repeat_issue"),
    ("this is the third time I ask", "repeat_issue"),
    ("物流还停在中转站", "delivery_delay"),
    ("my parcel hasn't arrived", "delivery_delay"),
    ("杯子碎成渣了", "quality_defect"),
    ("the handle came off in a week", "quality_defect"),
    ("我要投诉", "complaint"),
    ("this is a formal complaint", "complaint"),
    ("谢谢你呀", "thanks"),
    ("THANKS a lot", "thanks"),
    ("亲,我要 speak to a manager", "human_request"),
]

NOT_FOUND = [
    ("不用转人工", "human_request"),
    ("我不需要人工客服", "human_request"),
    ("这个是人工智能吗", "human_request"),
    ("No need to put me through, thanks", "human_request"),
    ("is this wig made of human hair", "human_request"),
    ("I don't want a refund", "refund_request"),
    ("I'm not asking for a refund", "refund_request"),
    ("退款到账了", "refund_request"),
    ("we are not going to court over this", "legal_threat"),
    ("do you sell court shoes", "legal_threat"),
    ("does the fire stick work in the EU", "safety_risk"),
    ("工商银行可以付款吗", "regulator_mention"),
    ("thanks for nothing", "thanks"),
    ("sorry for the stupid question", "abuse"),
    ("被子弹簧床", "abuse"),
    ("Staff was human enough", "safety_risk"),
    ("请问几点发货", "delivery_delay"),
]


@pytest.mark.parametrize(("text", "signal"), FOUND)
def test_what_a_customer_means_is_found(text: str, signal: str) -> None:
    assert signal in {hit.name for hit in FINDER.find(text)}


@pytest.mark.parametrize(("text", "signal"), NOT_FOUND)
def test_what_only_looks_like_it_is_not(text: str, signal: str) -> None:
    assert signal not in {hit.name for hit in FINDER.find(text)}


def test_every_signal_has_words_in_both_languages() -> None:
    languages = {signal: set() for signal in SIGNALS}
    for entry in FINDER.lexicon.entries:
        if entry.kind == "phrase":
            languages[entry.signal].add(entry.language)
    assert all(found == {"zh", "en"} for found in languages.values())


def test_spans_point_into_the_text_that_was_given() -> None:
    text = "İİ 谢谢! I want my money back, and a refund"
    refund = next(hit for hit in FINDER.find(text) if hit.name == "refund_request")
    assert [text[begin:end] for begin, end in refund.spans] == [
        "want my money",
        "my money back",
        "money back",
        "a refund",
    ]
    assert (refund.source, refund.weight) == ("lexicon", 1.0)
    assert refund.rule_id.startswith("en:")


def test_words_match_whole_and_a_star_takes_every_ending() -> None:
    lexicon = Lexicon()
    lexicon.add("phrase", "sue", "legal_threat", "en")
    lexicon.add("phrase", "complain*", "complaint", "en")
    assert [text for text in ("sue", "to sue you", "pursue", "suede", "sue's") if lexicon.find(text)] == [
        "sue",
        "to sue you",
    ]
    assert [text for text in ("complain", "complaining!", "acomplain") if lexicon.find(text)] == [
        "complain",
        "complaining!",
    ]


def test_a_gap_stays_within_its_length_and_its_sentence() -> None:
    lexicon = Lexicon()
    lexicon.add("phrase", "找...主管", "human_request", "zh")
    assert lexicon.find("找一下你们的主管")
    assert not lexicon.find("找一下你们店里面的那位主管")
    assert not lexicon.find("我找。主管")
    assert not lexicon.find("主管找")
    three = Lexicon()
    three.add("phrase", "a ... b ... c", "human_request", "en")
    assert three.find("a x b x c")
    assert not three.find("a x c")


def test_a_negation_counts_in_its_clause_and_not_when_it_only_looks_like_one() -> None:
    lexicon = Lexicon()
    lexicon.add("phrase", "投诉", "complaint", "zh")
    lexicon.add("negation", "不", language="zh")
    assert not lexicon.find("我不投诉")
    assert lexicon.find("不,投诉")
    assert not lexicon.find("不得不投诉")
    lexicon.add("not_negation", "不得不", language="zh")
    assert lexicon.find("不得不投诉")


def test_the_control_without_negations_finds_what_was_negated() -> None:
    bare = Lexicon()
    bare.add("phrase", "转人工", "human_request", "zh")
    assert bare.find("不用转人工")
    bare.add("negation", "不用", language="zh")
    assert not bare.find("不用转人工")


def test_the_models_probability_counts_from_its_threshold_and_names_its_source() -> None:
    finder = SignalFinder(load_lexicon(), thresholds={"complaint": 0.7}, labels=("complaint", "thanks"))
    assert finder.find("hello", [0.69, 0.49]) == ()
    (hit,) = finder.find("hello", [0.71, 0.1])
    assert (hit.name, hit.source, hit.spans, hit.weight) == ("complaint", "model", (), 0.71)
    both = finder.find("a formal complaint", [0.9, 0.1])
    assert [(hit.name, hit.source) for hit in both] == [("complaint", "lexicon"), ("complaint", "model")]


def test_no_text_and_no_probabilities_find_nothing() -> None:
    assert FINDER.find("") == ()
    assert Lexicon().find("anything") == []


@pytest.mark.parametrize("phrase", ["", "...", "a ... ", " ... b"])
def test_a_phrase_without_words_is_refused(phrase: str) -> None:
    with pytest.raises(ConfigurationError):
        Lexicon().add("phrase", phrase, "complaint", "en")


@pytest.mark.parametrize(
    "raw", [None, [], {}, {"language": "fr"}, {"language": "en", "signals": {"rage": {"phrases": ["x"]}}}]
)
def test_a_broken_lexicon_is_refused(raw: object) -> None:
    with pytest.raises(ConfigurationError):
        extend_lexicon(Lexicon(), raw, "test")


def test_hostile_text_costs_no_more_than_its_length() -> None:
    """Not a timing: a text of nothing but first halves of phrases ends, with nothing found."""
    assert FINDER.find("找" * 100_000 + "叫" * 100_000) == ()


def test_a_rule_file_changes_the_lexicon_for_all_and_for_one_tenant() -> None:
    rules = parse_rules(
        """
version: 1
rules: [{id: a, when: {signal: churn}}]
lexicon:
  add: {churn: {en: [off to the rival], zh: [找下家]}}
  remove: {thanks: {en: [cheers]}}
  except: {churn: {en: [never again in my life]}}
  tenants: {pub: {add: {thanks: {en: [cheers]}}}}
"""
    )
    finder = rules.finder()
    said = score(0.0)

    def names(text: str, tenant: str = "") -> list[str]:
        return [hit.name for hit in finder.of_message(text, said, tenant)]

    assert names("off to the rival then") == names("我去找下家了") == ["churn"]
    assert (names("cheers mate"), names("cheers mate", "pub")) == ([], ["thanks"])
    assert names("never again") == ["churn"]
    assert names("never again in my life") == []
    assert rules.finder() == finder
    assert finder.of_message("cheers", None) == finder.of_message(None, said) == ()


@pytest.mark.parametrize("section", ["{remove: {thanks: {en: [no such phrase]}}}", "{add: {thanks: {en: ['']}}}"])
def test_a_lexicon_change_that_cannot_be_made_is_refused(section: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_rules(f"version: 1\nrules: [{{id: a, when: {{signal: churn}}}}]\nlexicon: {section}")


def test_what_a_complaint_is_about_is_counted_and_sent_to_its_desk() -> None:
    rules = parse_rules(
        """
version: 1
complaints:
  desks: {logistics: {suggested_queue: courier-team, suggested_action: call_courier}, other: {suggested_queue: front}}
  words: {logistics: {en: [drone]}}
rules: [{id: pair, when: {streak: {length: 2}}}, {id: law, when: {signal: legal_threat}, suggested_queue: legal, severity: error}]
"""
    )
    finder = rules.finder()

    def turn(number: int, text: str) -> Turn:
        judged = score(-0.9)
        signals, topics = finder.hear(text, judged)
        return customer(f"m{number}", number, -0.9)._replace(signals=signals, topics=topics)

    assert turn(0, "the drone fell into my pond").topics == ("logistics",)
    assert turn(0, "包裹还没到,客服态度也差").topics == ("service", "logistics")
    assert turn(0, "it was smoking").topics == ("quality",)
    assert finder.hear(None, None) == ((), ())
    state, told = None, []
    for number, text in enumerate(
        ["where is my parcel", "the courier lost my package, and your agent is rude", "see you in court"]
    ):
        result = advance(state, turn(number, text), WHO, rules)
        state, told = result.state, told + result.transitions
    assert [(t.category, t.suggested_queue, t.suggested_action) for t in told] == [
        ("logistics", "courier-team", "call_courier"),
        ("logistics", "legal", "call_courier"),
    ]
    vague = advance(advance(None, turn(0, "no"), WHO, rules).state, turn(1, "no!"), WHO, rules).transitions
    assert [(t.category, t.suggested_queue) for t in vague] == [(None, "front")]


def test_words_that_the_model_contradicts_are_doubted_but_never_danger() -> None:
    finder = SignalFinder(load_lexicon(), labels=("complaint", "safety_risk"))
    assert [hit.name for hit in finder.find("a formal complaint", [0.06, 0.0])] == ["complaint"]
    assert finder.find("a formal complaint", [0.04, 0.0]) == ()
    assert [hit.name for hit in finder.find("it caught fire", [0.0, 0.0])] == ["safety_risk"]
    assert [hit.name for hit in finder.find("my money back", [0.0, 0.0])] == ["refund_request"]
