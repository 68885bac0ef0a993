"""Classes that a setting names by their import path: which may be imported, and their arguments."""
