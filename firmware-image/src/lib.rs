//! Builds the bootable appliance image: a disk with one EFI program, which is the Linux kernel and
//! an initramfs with one static program in it.
//!
//! - [`inputs`]: the kernel, the boot loader and what else is taken from elsewhere; [`program`] is
//!   what is ours.
//! - [`layers`]: each one layer of the image, outward.
//! - [`compose`]: all of it; [`manifest`] is the list of what is inside.
//! - [`sign`]: who says that it is right: keys of updates and of Secure Boot.
//! - [`run`]: a virtual machine to try it on.
//!
//! Everything runs without root, loop devices or a network, and twice the same inputs are twice
//! the same bytes.

pub mod compose;
pub mod failure;
pub mod inputs;
pub mod layers;
pub mod manifest;
pub mod program;
pub mod run;
pub mod sign;

#[cfg(test)]
mod tests;
