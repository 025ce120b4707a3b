"""The exhaustive model of the pool's protocols: see ``docs/model.md`` and run ``python -m tests.model``."""
