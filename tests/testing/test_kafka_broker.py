import pytest
from confluent_kafka import KafkaException, Producer

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.testing import (
    ExternalKafka,
    KafkaBroker,
    NoKafka,
    quiet,
    read_topic,
    start_kafka,
)
from stream_sentiment.testing import (
    kafka as kafka_module,
)
from stream_sentiment.testing.kafka_jars import JARS_VARIABLE, kafka_jars


def test_acknowledged_records_survive_kill_9_each_once(crashable_kafka):
    crashable_kafka.create_topic("in", partitions=3)
    settings = {"bootstrap.servers": crashable_kafka.bootstrap_servers, "enable.idempotence": True, "linger.ms": 5}
    producer = Producer(quiet(settings))
    acknowledged, failed = [], []

    def report(error, message):
        (failed if error else acknowledged).append(int(message.value()))

    for i in range(3000):
        producer.produce("in", str(i), on_delivery=report)
        producer.poll(0)
        if i == 1000:
            producer.flush(30)
            crashable_kafka.kill()
        if i == 2000:
            crashable_kafka.restart()
    assert producer.flush(60) == 0

    assert failed == []
    found = sorted(int(record.value) for record in read_topic(crashable_kafka.bootstrap_servers, "in", at_least=3000))
    assert found == sorted(acknowledged) == list(range(3000))


def test_a_forgotten_topic_is_an_error_and_not_created(kafka, unique):
    if isinstance(kafka, ExternalKafka):
        pytest.skip("another's cluster may create topics by itself")
    producer = Producer(quiet({"bootstrap.servers": kafka.bootstrap_servers, "message.timeout.ms": 5000}))
    name, codes = unique("never-created"), []
    producer.produce(name, b"x", on_delivery=lambda error, _: codes.append(error is not None))
    producer.flush(20)
    assert codes == [True]
    assert name not in kafka.admin().list_topics(timeout=10).topics


def test_a_topic_grows(kafka, unique):
    name = unique("grows")
    kafka.create_topic(name, partitions=2)
    kafka.grow_topic(name, 5)
    assert len(kafka.admin().list_topics(name, timeout=10).topics[name].partitions) == 5


def test_read_committed_hides_what_an_aborted_transaction_wrote(kafka, unique):
    """What only a real broker can show: the mock cluster gives both records to both readers."""
    name = unique("transactions")
    kafka.create_topic(name)
    producer = Producer(quiet({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": unique("tx")}))
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"aborted")
    producer.flush(30)
    producer.abort_transaction(30)
    producer.begin_transaction()
    producer.produce(name, b"committed")
    producer.commit_transaction(30)

    committed = read_topic(kafka.bootstrap_servers, name, at_least=1)
    everything = read_topic(kafka.bootstrap_servers, name, at_least=2, read_committed=False)
    assert [record.value for record in committed] == [b"committed"]
    assert [record.value for record in everything] == [b"aborted", b"committed"]


def test_a_second_producer_with_the_same_transactional_id_fences_the_first(kafka, unique):
    name, tx = unique("fence"), unique("tx")
    kafka.create_topic(name)
    settings = quiet({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": tx})
    first, second = Producer(settings), Producer(settings)
    first.init_transactions(30)
    first.begin_transaction()
    first.produce(name, b"of the zombie")
    second.init_transactions(30)
    with pytest.raises(KafkaException) as raised:
        first.commit_transaction(30)
    assert raised.value.args[0].fatal()
    assert read_topic(kafka.bootstrap_servers, name) == []


def test_a_broker_that_cannot_start_says_why(kafka):
    if not isinstance(kafka, KafkaBroker):
        pytest.skip("needs the jars")
    with pytest.raises(ServiceUnavailable, match="Invalid value minus one"):
        KafkaBroker(settings={"log.segment.bytes": "minus one"}).start()


def test_a_machine_without_any_kafka_names_every_way_and_why_it_is_closed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setattr(kafka_module, "_check_docker", _no_docker)
    with pytest.raises(NoKafka) as raised:
        start_kafka()
    assert str(raised.value) == (
        "no real Kafka here: KAFKA_BOOTSTRAP_SERVERS is not set; no Docker daemon answers; "
        "java is not on PATH (Apache Kafka 4 needs Java 17 or newer)"
    )


def test_a_named_cluster_that_does_not_answer_is_no_reason_to_take_another(monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(ExternalKafka, "timeout_s", 0.5)
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:1 .* does not answer"):
        start_kafka()


def test_a_directory_without_kafka_in_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(JARS_VARIABLE, str(tmp_path))
    with pytest.raises(ServiceUnavailable, match=r"holds no kafka_2\.13"):
        kafka_jars()


def _no_docker() -> None:
    raise ServiceUnavailable("no Docker daemon answers")
