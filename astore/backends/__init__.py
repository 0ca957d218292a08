"""The backends that come with astore."""
