"""pytest plugin of the conformance kit. Imports neither Hypothesis nor corepool until the kit is asked for."""
