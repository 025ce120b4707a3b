"""A corepool driver on an SQLite file: several processes of one machine, nothing to install."""
