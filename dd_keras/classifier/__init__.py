"""What any Keras classifier is: one tensor in, logits out."""
