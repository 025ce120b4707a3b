"""A third party's driver distribution, as small as one can be, with one sound plugin and several broken ones."""
