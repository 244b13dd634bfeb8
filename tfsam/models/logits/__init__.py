"""Logits of models: the numbers before a softmax or a sigmoid."""
