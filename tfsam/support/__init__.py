"""Support: files, devices, signals and checks, for every other package."""
