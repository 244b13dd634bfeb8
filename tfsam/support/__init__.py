"""Foundations that every package may use: files, devices, signals, checks."""
