"""Adapters of other libraries' attacks, each imported in its own module."""
