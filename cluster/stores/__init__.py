"""Where all published data lives: one small protocol, a POSIX folder and an S3 bucket behind it."""

from cluster.stores.base import Store, ask_many, check_key, get_many, make_store, prefetch

__all__ = ["Store", "ask_many", "check_key", "get_many", "make_store", "prefetch"]
