"""Every safeguard switched off in turn: what would happen without it is found, and named."""
