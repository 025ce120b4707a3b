"""The in-memory driver of corepool: an embedded store, and a cluster simulator on top of it."""
