"""Training a backbone: the loop, its steps, and what it saves."""
