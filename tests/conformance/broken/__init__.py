"""Drivers that break one promise each: what the kit must catch, and the test that must catch it."""
