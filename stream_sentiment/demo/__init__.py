"""The demonstration: a chat floor that comes along, played into the real worker, and a terminal view of what comes out.

`chatlog` reads conversations (ours, or a user's file), `player` turns them into a timed stream of records, `runner` starts the embedded
broker and Redis and the worker, `floor` folds the output topics into what is shown, `view` draws it, `summary` counts it.
"""
