"""Files of models: their formats, and the reading of each."""
