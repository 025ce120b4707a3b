"""``corepool bench URL``: what a backend's servers give, and the floor that each figure is measured against.

Purpose: a user runs it on servers of his own to choose between them; the project's own speed goals are shown beside what was
measured.
Invariants: every figure that depends on the network is quoted with a floor measured between its own samples, so that a busy
machine moves both; what could not be measured is listed with the reason, never left out in silence.
Neighbours: `command` parses and prints, `study` measures, `floors` knows what a plain round trip of each driver is.
"""
