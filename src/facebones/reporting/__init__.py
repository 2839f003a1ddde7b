"""Reports: results read from files, as tables, plots, sentences and a page."""
