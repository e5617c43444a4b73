"""Redis at the edge: the conversation states, the watermarks and the outbox, one slot per input partition."""
