"""Pictures and clips that users have, read safely and brought to one form."""
