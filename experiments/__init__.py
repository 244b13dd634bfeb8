"""What tfsam finds out: each module is a command, and prints what it found."""
