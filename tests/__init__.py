"""The tests compare sentences in English, whatever the user's language is."""

import os

os.environ["LANGUAGE"] = "en"
