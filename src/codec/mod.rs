//! Compress and encrypt, both ways.
