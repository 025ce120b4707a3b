"""The pool under everything that can befall it, by default and as far as one likes."""
