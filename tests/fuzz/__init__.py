"""The API and the parsers under inputs that nobody thought of; what was found stays here as examples."""
