"""What the library assumes of a classifier: one tensor in, logits out."""
