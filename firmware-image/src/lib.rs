//! Builds the bootable appliance image: a disk with one EFI program, which is the Linux kernel and
//! an initramfs with one static program in it.
//!
//! - [`inputs`]: the kernel, the boot loader and what else is taken from elsewhere.
//! - [`layers`]: each one layer of the image, outward.
//! - [`compose`]: all of it, and the manifest.
//!
//! Everything runs without root, loop devices or a network, and twice the same inputs are twice
//! the same bytes.

pub mod compose;
pub mod failure;
pub mod inputs;
pub mod layers;

#[cfg(test)]
mod tests;
