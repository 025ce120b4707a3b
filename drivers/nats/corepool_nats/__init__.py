"""The NATS JetStream driver of corepool."""
