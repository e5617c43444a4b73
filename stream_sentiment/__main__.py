"""`python -m stream_sentiment`: the same as the `stream-sentiment` command."""

from stream_sentiment.cli.main import main

if __name__ == "__main__":
    main()
