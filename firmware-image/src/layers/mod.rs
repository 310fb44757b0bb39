//! The layers of an image, outward: modules and a program in an initramfs, that and a kernel in an
//! EFI program, that and the boot loader on a disk, and the disk in a file. All of them are pure:
//! bytes in, bytes out.

pub mod disk;
pub mod initramfs;
pub mod modules;
pub mod qcow2;
pub mod uki;
