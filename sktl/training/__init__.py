"""The trainable suffix and the head: from features to logits."""
