"""What is measured on a result: point sources, their positions and significance."""
