"""The contract layer: one module per part of the protocols; each test names the promise it holds the driver to."""
