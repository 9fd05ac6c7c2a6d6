"""The intermediate representation: types, graphs, primitives, text form, verifier, reference interpreter."""
