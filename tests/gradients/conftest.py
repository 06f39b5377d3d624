"""One thread and a known seed for every test of this folder."""

from helpers.fixtures import fresh_dynamo, quiet_torch, silent_logs

__all__ = ["fresh_dynamo", "quiet_torch", "silent_logs"]
