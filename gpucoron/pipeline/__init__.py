"""Run an association: settings, products, output files."""
