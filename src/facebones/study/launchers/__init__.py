"""How the trainings of a study are started."""
