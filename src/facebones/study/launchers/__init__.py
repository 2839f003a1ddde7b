"""Ways to start the trainings of a study."""
