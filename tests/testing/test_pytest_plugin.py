import os

import pytest

PLUGIN = 'pytest_plugins = ["stream_sentiment.testing.pytest_plugin"]'
UNUSABLE_KAFKA = """
    import stream_sentiment.testing.pytest_plugin as plugin
    from stream_sentiment.testing import NoKafka

    def no_kafka():
        raise NoKafka("no real Kafka here: the moon is full")

    plugin.start_kafka = no_kafka
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a test module in a pytest of its own, with the tiers required that are named."""

    def run(module: str, require: str = "", conftest: str = ""):
        pytester.makeini("[pytest]\nmarkers =\n  kafka: x\n  redis: x\naddopts = --strict-markers -ra")
        pytester.makeconftest(PLUGIN)
        pytester.makepyfile(test_it=module, **({"no_kafka": conftest} if conftest else {}))
        monkeypatch.setenv("STREAM_SENTIMENT_TEST_REQUIRE", require)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), os.environ.get("PYTHONPATH", "")]))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *(["-p", "no_kafka"] if conftest else []))

    return run


def test_a_test_without_its_service_is_skipped_with_the_reason(run):
    result = run("def test_it(kafka): pass", conftest=UNUSABLE_KAFKA)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["tier kafka: 0 passed, 0 failed, 1 skipped on nothing: *the moon is full"])


def test_where_the_service_is_required_the_skip_is_a_failure(run):
    result = run("def test_it(kafka): pass", require="kafka", conftest=UNUSABLE_KAFKA)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the moon is full", "*demands kafka: this test may not be skipped"])


def test_a_skip_by_hand_inside_a_required_tier_is_a_failure_too(run):
    module = """
        import pytest

        @pytest.mark.kafka
        def test_by_call():
            pytest.skip("not today")

        @pytest.mark.kafka
        @pytest.mark.skipif(True, reason="never")
        def test_by_mark():
            pass
    """
    assert run(module, require="kafka").ret == pytest.ExitCode.TESTS_FAILED
    run(module).assert_outcomes(skipped=2)


def test_a_skip_outside_the_required_tier_stays_a_skip(run):
    run("import pytest\ndef test_it(): pytest.skip('no GPU')", require="kafka,redis").assert_outcomes(skipped=1)


def test_an_expected_failure_in_a_required_tier_is_no_skip(run):
    module = """
        import pytest

        @pytest.mark.redis
        @pytest.mark.xfail(strict=True)
        def test_it():
            raise AssertionError
    """
    run(module, require="redis").assert_outcomes(xfailed=1)


def test_a_misspelt_tier_is_refused(run):
    result = run("def test_it(): pass", require="kafak")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*names kafak; known: redis, kafka"])


@pytest.mark.redis
def test_each_test_gets_an_empty_redis_with_its_own_configuration_restored(run):
    module = """
        import redis

        def test_a(redis_url):
            with redis.Redis.from_url(redis_url) as client:
                client.set("left", "over")
                client.config_set("maxmemory", "3mb")

        def test_b(redis_url):
            with redis.Redis.from_url(redis_url) as client:
                assert client.dbsize() == 0
                assert client.config_get("maxmemory") == {"maxmemory": "268435456"}
    """
    result = run(module, require="redis")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["tier redis: 2 passed, 0 failed, 0 skipped on Redis *"])
