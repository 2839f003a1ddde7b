"""The comparison: what runs there are, train or resume each in a process of its own, evaluate and profile them all."""
