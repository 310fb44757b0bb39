//! The clock: SNTP, and an honest word on whether it is synchronised.
