"""The whole system on one machine without Docker, for looking, drilling and developing: `stream-sentiment dev up`."""
