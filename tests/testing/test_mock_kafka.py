import socket
import threading
import time

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.kafka.embedded import EmbeddedKafka, MockApi
from stream_sentiment.testing import ApiKey, MockKafka, TcpProxy, quiet, read_topic


def producer(servers: str, **settings) -> Producer:
    return Producer(quiet({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 0, **settings}))


class Reports(list):
    """Delivery reports: None for delivered, else the error's code."""

    def __call__(self, error, message):
        self.append(error.code() if error else None)


def test_topics_have_the_partitions_that_were_asked_for():
    with EmbeddedKafka({"one": 1, "twelve": 12}) as kafka:
        topics = producer(kafka.bootstrap_servers).list_topics(timeout=10).topics
    assert (len(topics["one"].partitions), len(topics["twelve"].partitions)) == (1, 12)


def test_another_process_can_use_the_cluster():
    with EmbeddedKafka({"in": 1}) as kafka:
        host, port = kafka.bootstrap_servers.split(":")
        with socket.create_connection((host, int(port)), timeout=5):
            pass


def test_a_produce_survives_a_broker_that_goes_down_and_comes_back(mock_kafka):
    mock_kafka.create_topic("in", 3)
    reports = Reports()
    client = producer(mock_kafka.bootstrap_servers)
    client.list_topics(timeout=10)

    mock_kafka.broker_down()
    for i in range(50):
        client.produce("in", str(i), on_delivery=reports)
    client.poll(0.5)
    assert reports == []  # the control: nothing is delivered while every broker is down
    mock_kafka.broker_up()

    assert client.flush(30) == 0
    assert reports == [None] * 50
    assert sorted(int(r.value) for r in read_topic(mock_kafka.bootstrap_servers, "in")) == list(range(50))


def test_pushed_errors_fail_exactly_as_many_requests(mock_kafka):
    mock_kafka.create_topic("in", 1)
    client, reports = producer(mock_kafka.bootstrap_servers), Reports()
    mock_kafka.push_errors(ApiKey.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])

    client.produce("in", "refused", on_delivery=reports)
    client.flush(10)
    client.produce("in", "accepted", on_delivery=reports)
    client.flush(10)

    assert reports == [KafkaError.MSG_SIZE_TOO_LARGE, None]


def test_cleared_errors_fail_nothing(mock_kafka):
    mock_kafka.create_topic("in", 1)
    client, reports = producer(mock_kafka.bootstrap_servers), Reports()
    mock_kafka.push_errors(ApiKey.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])
    mock_kafka.clear_errors(ApiKey.PRODUCE)
    client.produce("in", "x", on_delivery=reports)
    client.flush(10)
    assert reports == [None]


def test_a_topic_error_is_seen_in_its_metadata_until_it_is_taken_back(mock_kafka):
    mock_kafka.create_topic("in", 1)
    client = producer(mock_kafka.bootstrap_servers)
    mock_kafka.set_topic_error("in", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    assert client.list_topics("in", timeout=10).topics["in"].error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    mock_kafka.set_topic_error("in", 0)
    assert client.list_topics("in", timeout=10).topics["in"].error is None


def test_a_partition_moves_to_the_leader_that_it_was_given(mock_kafka):
    mock_kafka.create_topic("in", 1)
    client = producer(mock_kafka.bootstrap_servers)
    for broker in (1, 2, 3):
        mock_kafka.set_partition_leader("in", 0, broker)
        assert client.list_topics("in", timeout=10).topics["in"].partitions[0].leader == broker


def test_deleted_records_are_gone_and_the_low_watermark_says_so(mock_kafka):
    mock_kafka.create_topic("in", 1)
    client = producer(mock_kafka.bootstrap_servers)
    for i in range(10):
        client.produce("in", str(i))
        client.flush(10)  # a batch each: the mock drops whole batches
    mock_kafka.delete_records("in", 0, before=6)

    reader = Consumer(quiet({"bootstrap.servers": mock_kafka.bootstrap_servers, "group.id": "g"}))
    assert reader.get_watermark_offsets(TopicPartition("in", 0), timeout=10) == (6, 10)
    reader.close()
    assert [r.value for r in read_topic(mock_kafka.bootstrap_servers, "in")] == [b"6", b"7", b"8", b"9"]


def test_a_topic_can_come_back_with_more_partitions(mock_kafka):
    mock_kafka.create_topic("in", 4)
    mock_kafka.delete_topic("in")
    mock_kafka.create_topic("in", 6)
    assert len(producer(mock_kafka.bootstrap_servers).list_topics("in", timeout=10).topics["in"].partitions) == 6


def test_requests_are_recorded_with_their_kind(mock_kafka):
    mock_kafka.create_topic("in", 1)
    client = producer(mock_kafka.bootstrap_servers)
    mock_kafka.track_requests()
    client.produce("in", "x")
    client.flush(10)
    kinds = [request.api_key for request in mock_kafka.requests()]
    assert kinds.count(ApiKey.PRODUCE) == 1
    assert kinds.count(ApiKey.INIT_PRODUCER_ID) == 1


def test_a_commit_by_a_member_that_is_no_longer_one_is_refused(mock_kafka):
    mock_kafka.create_topic("in", 1)
    consumer = Consumer(quiet({"bootstrap.servers": mock_kafka.bootstrap_servers, "group.id": "g"}))
    for code in (KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID):
        mock_kafka.push_errors(ApiKey.OFFSET_COMMIT, [code])
        with pytest.raises(KafkaException) as raised:
            consumer.commit(offsets=[TopicPartition("in", 0, 1)], asynchronous=False)
        assert raised.value.args[0].code() == code
    consumer.close()


def test_a_consumer_group_member_that_falls_silent_loses_its_partitions_to_the_next(mock_kafka):
    mock_kafka.create_topic("in", 4)
    settings = {"bootstrap.servers": mock_kafka.bootstrap_servers, "group.id": "g", "group.protocol": "consumer"}
    first, second = Consumer(quiet(settings)), Consumer(quiet(settings))
    first.subscribe(["in"])
    while len(first.assignment()) < 4:
        first.poll(0.1)
    second.subscribe(["in"])
    while len(second.assignment()) < 2 or len(first.assignment()) > 2:
        first.poll(0.05)
        second.poll(0.05)
    first.close()
    while len(second.assignment()) < 4:
        second.poll(0.1)
    second.close()


def test_a_proxy_stands_before_a_broker_that_advertises_it():
    with MockKafka({"in": 1}, brokers=1) as kafka:
        host, port = kafka.bootstrap_servers.split(":")
        with TcpProxy(host, int(port)) as proxy:
            kafka.advertise(1, proxy.host, proxy.port)
            client, reports = producer(kafka.bootstrap_servers, **{"message.timeout.ms": 1500}), Reports()
            client.list_topics(timeout=10)
            proxy.blackhole()
            client.produce("in", "lost in the network", on_delivery=reports)
            client.flush(10)
            assert reports == [KafkaError._MSG_TIMED_OUT]


def test_an_idempotent_producer_survives_a_lost_answer_without_a_double():
    with MockKafka({"in": 1}, brokers=1) as kafka:
        host, port = kafka.bootstrap_servers.split(":")
        with TcpProxy(host, int(port)) as proxy:
            kafka.advertise(1, proxy.host, proxy.port)
            client, reports = producer(kafka.bootstrap_servers), Reports()
            for i in range(200):
                client.produce("in", str(i), on_delivery=reports)
                client.poll(0)
                if i % 50 == 25:
                    proxy.reset()
            assert client.flush(30) == 0
            assert reports == [None] * 200
            assert sorted(int(r.value) for r in read_topic(kafka.bootstrap_servers, "in")) == list(range(200))


def test_a_function_that_librdkafka_does_not_have_is_a_clear_error():
    with pytest.raises(ServiceUnavailable, match=r"has no rd_kafka_mock_make_coffee; install confluent-kafka 2\.16"):
        MockApi().function("mock_make_coffee", None)


def test_a_stopped_cluster_says_that_it_was_not_started():
    kafka = MockKafka({"in": 1}).start()
    kafka.stop()
    with pytest.raises(ServiceUnavailable, match="has not been started"):
        kafka.broker_down()


def test_a_topic_that_exists_cannot_be_created_again(mock_kafka):
    mock_kafka.create_topic("in")
    with pytest.raises(ServiceUnavailable, match="already exists"):
        mock_kafka.create_topic("in")


def test_reading_a_topic_waits_for_the_records_that_were_promised(mock_kafka):
    mock_kafka.create_topic("in", 2)
    client = producer(mock_kafka.bootstrap_servers)

    def later() -> None:
        time.sleep(0.5)
        client.produce("in", "late", headers={"trace": b"1"}, key="k")
        client.flush(10)

    thread = threading.Thread(target=later)
    thread.start()
    (record,) = read_topic(mock_kafka.bootstrap_servers, "in", at_least=1)
    thread.join()
    assert (record.value, record.key, record.headers) == (b"late", b"k", {"trace": "1"})


def test_reading_a_topic_that_stays_short_says_what_was_found(mock_kafka):
    mock_kafka.create_topic("in", 2)
    with pytest.raises(ServiceUnavailable, match=r"0 records after 2 s \(at least 1 expected; 2 of 2 partitions"):
        read_topic(mock_kafka.bootstrap_servers, "in", at_least=1, timeout_s=2)
