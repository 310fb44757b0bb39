//! The console session: login, then a small command language; no shell.
