//! The requests to the kernel that no library offers safely; the only unsafe code there is.
#![allow(unsafe_code, reason = "ioctl(2) has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc::{self, c_int, c_longlong, c_void};

/// Of `linux/blkpg.h`: what a partition is to become.
#[repr(C)]
struct Partition {
    start_bytes: c_longlong,
    length_bytes: c_longlong,
    number: c_int,
    unused: [u8; 128],
}

#[repr(C)]
struct PartitionRequest {
    op: c_int,
    flags: c_int,
    length: c_int,
    data: *mut c_void,
}

const BLKPG: u64 = 0x1269;
const BLKPG_RESIZE_PARTITION: c_int = 3;

nix::ioctl_write_ptr_bad!(change_partition, BLKPG, PartitionRequest);
// linux/ext4.h: EXT4_IOC_RESIZE_FS
nix::ioctl_write_ptr!(resize_file_system, b'f', 16, u64);
// linux/watchdog.h: WDIOC_SETTIMEOUT, seconds
nix::ioctl_readwrite!(set_watchdog, b'W', 6, c_int);
// linux/fs.h: BLKZEROOUT, from and length in bytes
nix::ioctl_write_ptr_bad!(zero_out, 0x127f, [u64; 2]);
nix::ioctl_write_int_bad!(take_line, libc::TIOCSCTTY);

/// Tells the kernel how long a partition of the disk is now, which may be in use.
pub fn resize_partition(disk: &File, number: c_int, start: i64, length: i64) -> io::Result<()> {
    let mut partition = Partition {
        start_bytes: start,
        length_bytes: length,
        number,
        unused: [0; 128],
    };
    let request = PartitionRequest {
        op: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: 0,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: the request and what it points to live until the call returns.
    unsafe { change_partition(disk.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// A stretch of a disk reads as zeros afterwards; in bytes, whole sectors.
pub fn clear(disk: &File, from: u64, length: u64) -> io::Result<()> {
    let stretch = [from, length];
    // SAFETY: the numbers live until the call returns.
    unsafe { zero_out(disk.as_raw_fd(), &raw const stretch) }?;
    Ok(())
}

/// A mounted ext4 takes this many blocks from now on; `root` is a file or folder in it.
pub fn grow_ext4(root: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the number lives until the call returns.
    unsafe { resize_file_system(root.as_fd().as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// Gives the seconds that the watchdog took.
pub fn watchdog_timeout(watchdog: impl AsFd, seconds: i32) -> io::Result<i32> {
    let mut seconds = seconds;
    // SAFETY: the number lives until the call returns.
    unsafe { set_watchdog(watchdog.as_fd().as_raw_fd(), &raw mut seconds) }?;
    Ok(seconds)
}

/// Makes the line our controlling terminal, for Ctrl-C; a session leader without one may.
pub fn control_terminal(line: impl AsFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { take_line(line.as_fd().as_raw_fd(), 0) }?;
    Ok(())
}
