"""Training data, verification pairs and synthetic faces, in the formats of the field."""
