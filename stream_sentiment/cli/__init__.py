"""The commands. Each module holds one command or one group; `main` puts them together.

Results go to stdout, logs and messages to stderr. Exit status: 0 done, 1 the answer is no, 2 usage, 69 a service is unavailable,
75 try again, 78 configuration.
"""
