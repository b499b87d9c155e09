"""A multi-tenant event store: one ordered, hash-chained log per tenant over Postgres and Parquet."""

__all__ = ["__version__"]

__version__ = "0.1.0"
