"""Projects that come with the package."""
