//! Files that survive a power cut: the only writer of anything that must not be half there.
