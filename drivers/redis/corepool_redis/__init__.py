"""The Redis and Valkey driver of corepool."""
