"""Runs: settings, methods, training, attacks and reports of one command."""
