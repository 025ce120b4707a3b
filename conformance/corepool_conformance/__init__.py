"""The conformance kit of corepool: one suite for every driver, ours or a stranger's."""
