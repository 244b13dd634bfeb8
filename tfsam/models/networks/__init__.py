"""Networks to train that users name or bring."""
