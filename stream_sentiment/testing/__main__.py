"""`python -m stream_sentiment.testing`: which Redis and which jars of Apache Kafka tests on this machine would use.

Downloads the jars when they are not there yet, so that images and CI can do it beforehand. Exit status 69 when one of the two is
missing.
"""

from __future__ import annotations

import sys

from stream_sentiment.errors import ExitStatus, StreamSentimentError
from stream_sentiment.store.embedded import find_redis
from stream_sentiment.testing.kafka_jars import kafka_jars


def main() -> int:
    status = ExitStatus.DONE
    for name, find in (("redis", find_redis), ("kafka jars", kafka_jars)):
        try:
            print(f"{name}: {find()}")
        except StreamSentimentError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = ExitStatus.UNAVAILABLE
    return status


if __name__ == "__main__":
    sys.exit(main())
