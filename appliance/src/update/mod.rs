//! The boot loader's two slots: what is in them, which one was tried, and signed bundles.
