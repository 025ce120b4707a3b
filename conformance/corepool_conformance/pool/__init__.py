"""The pool layer: generated plans of operations and faults on a pool that runs on the driver under test.

Read in this order: ``plans`` (what is done), ``env`` (where it is done, and the verdict), ``sim_env`` and ``real_env``.
"""
