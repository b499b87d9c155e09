"""The client of the store: append, read and follow over HTTP, and lose nothing while the store is away."""
