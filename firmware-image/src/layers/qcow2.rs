//! A raw disk as a qcow2 file, which holds only what is not empty, and is what most hypervisors
//! take or convert. The format: QEMU's `docs/interop/qcow2.txt`, version 3.
//!
//! ```text
//! cluster 0        header
//!         1 ...    reference counts: their table (one cluster), then their blocks
//!         ...      the first table of addresses, then the second ones
//!         ...      the disk's clusters, in their order
//! ```
//!
//! A disk whose content is the same gives the same file.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use crate::failure::{Outcome, failure};

/// QEMU's own choice.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Addresses in a cluster of 8 bytes each, counts in one of 2.
const ADDRESSES: u64 = CLUSTER / 8;
const COUNTS: u64 = CLUSTER / 2;
/// Of an address: the cluster is used once.
const ONCE: u64 = 1 << 63;
const HEADER: u32 = 104;
/// The counts are `1 << 4` bits wide.
const COUNT_WIDTH: u32 = 4;

/// Where everything lies, in clusters.
struct Plan {
    /// Of the disk, in bytes.
    size: u64,
    count_blocks: u64,
    /// First tables; one of them covers 4 TiB.
    firsts: u64,
    seconds: u64,
    /// By cluster of the disk: whether it has content.
    used: Vec<bool>,
}

impl Plan {
    fn of(size: u64, used: Vec<bool>) -> Plan {
        let clusters = size.div_ceil(CLUSTER);
        let seconds = clusters.div_ceil(ADDRESSES);
        let mut plan = Plan {
            size,
            count_blocks: 1,
            firsts: seconds.div_ceil(ADDRESSES),
            seconds,
            used,
        };
        while plan.end().div_ceil(COUNTS) > plan.count_blocks {
            plan.count_blocks += 1;
        }
        plan
    }

    fn first(&self) -> u64 {
        2 + self.count_blocks
    }

    fn second(&self) -> u64 {
        self.first() + self.firsts
    }

    fn content(&self) -> u64 {
        self.second() + self.seconds
    }

    fn end(&self) -> u64 {
        (self.used.iter().filter(|used| **used)).fold(self.content(), |end, _| end + 1)
    }

    /// Everything in front of the disk's content.
    fn tables(&self) -> Outcome<Vec<u8>> {
        let small = |n: u64| {
            u32::try_from(n).map_err(|_| failure("the disk is too large for a qcow2 file"))
        };
        let mut out = Vec::new();
        out.extend(b"QFI\xfb");
        out.extend(3_u32.to_be_bytes());
        // No backing file.
        out.extend([0; 12]);
        out.extend(CLUSTER_BITS.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        // Not encrypted.
        out.extend([0; 4]);
        out.extend(small(self.seconds)?.to_be_bytes());
        out.extend((self.first() * CLUSTER).to_be_bytes());
        out.extend(CLUSTER.to_be_bytes());
        out.extend(1_u32.to_be_bytes());
        // No snapshots, no features.
        out.extend([0; 4 + 8 + 3 * 8]);
        out.extend(COUNT_WIDTH.to_be_bytes());
        out.extend(HEADER.to_be_bytes());
        pad(&mut out);
        for block in 0..self.count_blocks {
            out.extend(((2 + block) * CLUSTER).to_be_bytes());
        }
        pad(&mut out);
        for _ in 0..self.end() {
            out.extend(1_u16.to_be_bytes());
        }
        pad(&mut out);
        for table in 0..self.seconds {
            out.extend((((self.second() + table) * CLUSTER) | ONCE).to_be_bytes());
        }
        pad(&mut out);
        let mut at = self.content();
        for used in &self.used {
            let address = if *used { (at * CLUSTER) | ONCE } else { 0 };
            at += u64::from(*used);
            out.extend(address.to_be_bytes());
        }
        pad(&mut out);
        Ok(out)
    }
}

fn pad(bytes: &mut Vec<u8>) {
    while !u64::try_from(bytes.len()).is_ok_and(|length| length.is_multiple_of(CLUSTER)) {
        bytes.push(0);
    }
}

/// Reads the raw disk twice, a cluster at a time.
pub fn write(raw: &Path, out: &Path) -> Outcome<()> {
    let about = |error| failure(format!("{}: {error}", raw.display()));
    let size = std::fs::metadata(raw).map_err(about)?.len();
    let mut used = Vec::new();
    each_cluster(raw, |cluster| {
        used.push(!is_empty(cluster));
        Ok(())
    })?;
    let plan = Plan::of(size, used);
    let about = |error| failure(format!("{}: {error}", out.display()));
    let mut file = BufWriter::new(File::create(out).map_err(about)?);
    file.write_all(&plan.tables()?).map_err(about)?;
    each_cluster(raw, |cluster| {
        if !is_empty(cluster) {
            file.write_all(cluster).map_err(about)?;
        }
        Ok(())
    })?;
    let file = file
        .into_inner()
        .map_err(|error| about(error.into_error()))?;
    file.sync_all().map_err(about)
}

/// Compared as a whole: gigabytes are looked at.
pub fn is_empty(block: &[u8]) -> bool {
    block.iter().next().is_none_or(|first| *first == 0)
        && block.get(1..) == block.get(..block.len().saturating_sub(1))
}

/// The last one is filled up with zeros.
fn each_cluster(raw: &Path, mut each: impl FnMut(&[u8]) -> Outcome<()>) -> Outcome<()> {
    let about = |error| failure(format!("{}: {error}", raw.display()));
    let mut file = File::open(raw).map_err(about)?;
    loop {
        let mut cluster = Vec::new();
        (&mut file)
            .take(CLUSTER)
            .read_to_end(&mut cluster)
            .map_err(about)?;
        if cluster.is_empty() {
            return Ok(());
        }
        pad(&mut cluster);
        each(&cluster)?;
    }
}
