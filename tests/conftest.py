"""The test kit's own fixtures, for all tests; pytester for the tests of those fixtures."""

pytest_plugins = ["stream_sentiment.testing.pytest_plugin", "pytester"]
