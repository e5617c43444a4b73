"""Errors that end a command, each with the exit status that the caller's script sees.

The numbers are those of sysexits(3) where it has one: 69 EX_UNAVAILABLE, 75 EX_TEMPFAIL, 78 EX_CONFIG.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What a command's exit status means; the same for every command."""

    DONE = 0
    NO = 1
    USAGE = 2
    UNAVAILABLE = 69
    TRY_AGAIN = 75
    CONFIGURATION = 78


class StreamSentimentError(Exception):
    """Base of every error that is shown to a person as one message with its remedy, without a traceback."""

    exit_status: ExitStatus = ExitStatus.NO


class ConfigurationError(StreamSentimentError):
    """A setting, a rule file, a model bundle or the installation is wrong; trying again cannot help."""

    exit_status = ExitStatus.CONFIGURATION


class ServiceUnavailable(StreamSentimentError):
    """Kafka or Redis cannot be reached."""

    exit_status = ExitStatus.UNAVAILABLE


class TryAgain(StreamSentimentError):
    """A transient condition outlasted its deadline; the same command may succeed later."""

    exit_status = ExitStatus.TRY_AGAIN
