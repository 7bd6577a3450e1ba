"""One association: its five steps, planning, results, and what a later run resumes from."""
