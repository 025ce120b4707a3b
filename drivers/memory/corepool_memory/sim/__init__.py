"""The cluster simulator: whole clusters in one process, in virtual time, from a seed.

Read in this order: ``loop`` (the event loop), ``node`` (a machine), ``chooser`` (every decision), ``network`` and
``faults`` (what can go wrong), ``world`` (all of it together), ``run`` (one scenario, one verdict).
"""
