"""Tools for data sets: inspect, align, convert, sample pairs."""
