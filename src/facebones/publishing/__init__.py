"""Publishing: a finished run as a repository of the Hugging Face Hub, with a card of what was measured of it."""
