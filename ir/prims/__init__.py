"""All primitives, by family. Importing this package fills the registry."""
