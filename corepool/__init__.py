"""Dedicated worker pools on the store you already run: every job has one owner, and none is lost."""
