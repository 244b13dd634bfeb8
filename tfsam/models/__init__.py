"""Models that users bring, as functions from pixels to logits."""
