"""Streams of events: append, read independently, or share out with acknowledgements.

Purpose: `Stream`, `Reader` and `Sink`. Readers and sinks merge several streams and filter topics.
Neighbours: stands on :mod:`corepool.driver.streams`; the pool and users stand on it.
"""

from corepool.streaming.reader import Message, Reader
from corepool.streaming.sink import Keeping, Received, Sink
from corepool.streaming.stream import Stream
from corepool.streaming.topics import Pattern, TopicFilter

__all__ = ["Keeping", "Message", "Pattern", "Reader", "Received", "Sink", "Stream", "TopicFilter"]
