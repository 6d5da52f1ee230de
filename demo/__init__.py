"""The laptop world, which shows the whole path without a download: imports all, imported by none."""
