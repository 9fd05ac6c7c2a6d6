"""pytest plugin: fixtures that run a test eagerly and compiled."""
