"""Files, devices, processes, signals and progress: what every other package may use."""
