//! Speaking PostgreSQL: connection strings, authentication, TLS, the replication protocol.
