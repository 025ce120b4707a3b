"""pytest plugin: fixtures for tests of job handlers. Imports corepool only when a fixture is used."""
