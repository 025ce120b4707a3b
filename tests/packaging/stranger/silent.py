"""A plugin module without a hook."""
