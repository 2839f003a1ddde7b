"""Training data, verification pairs and template sets, in the formats of the field."""
