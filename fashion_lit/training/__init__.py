"""One run carried out: built, trained, shown, used."""
