"""The test kit's own fixtures, for all tests."""

pytest_plugins = ["stream_sentiment.testing.pytest_plugin"]
